// What the layout editor knows about boxes: pure functions without a page, tested by `node --test tests/js`.
// Boxes are fractions 0..1 of the page from its top left corner. Limits and the fitting rule repeat
// pipeline/layout/check.py and text_fit.py; tests/data/layout_fit.json keeps the two equal.

export const FORMAT = "glm-image-layout"
export const VERSION = 1
export const ROLES = ["title", "subtitle", "body", "caption", "label", "sign", "price", "text"]
export const ALIGNMENTS = ["left", "center", "right"]
export const DIRECTIONS = ["horizontal", "vertical"]
export const MAX_REGIONS = 100
export const MAX_TEXT = 1000
export const MIN_FONT = 12
export const MAX_OVERLAP = 0.35
export const LINE_HEIGHT = 1.2
export const MIN_SIDE = 0.02
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"]

const NARROW = 0.6
const WIDE_SET =
  "\\u1100-\\u115f\\u2e80-\\ua4cf\\uac00-\\ud7a3\\uf900-\\ufaff\\ufe30-\\ufe6f\\uff00-\\uff60\\uffe0-\\uffe6" +
  "\\u{1f300}-\\u{1faff}\\u{20000}-\\u{3fffd}"
const CLOSING = "[，。、！？；：）」』】》〉”’]"
const WIDE = new RegExp(`[${WIDE_SET}]`, "gu")
const PIECE = new RegExp(`\\s*(?:[${WIDE_SET}]|(?:(?![${WIDE_SET}])\\S)+)${CLOSING}*`, "gu")

const NUMBERS = ["x", "y", "width", "height"]
const DEFAULTS = { text: "", role: "text", style: "", align: "center", direction: "horizontal", font: "", color: "" }

// ---- value ----

export function newRegion(box, fields = {}) {
  return { ...DEFAULTS, ...fields, x: box.x, y: box.y, width: box.width, height: box.height }
}

export function serialise(regions) {
  return JSON.stringify({ format: FORMAT, version: VERSION, regions })
}

// JSON text -> { regions, error }. On an error nothing may be written back: the text stays as it came.
export function parse(text) {
  if (text === undefined || text === null || text === "") return { regions: [], error: null }
  let data
  try {
    data = typeof text === "string" ? JSON.parse(text) : text
  } catch (error) {
    return { regions: [], error: `not valid JSON (${error.message})` }
  }
  if (data === null || typeof data !== "object" || data.format !== FORMAT) {
    return { regions: [], error: `not a "${FORMAT}" object` }
  }
  if (data.version !== VERSION) {
    return { regions: [], error: `version ${JSON.stringify(data.version)}; this editor reads ${VERSION}` }
  }
  if (!Array.isArray(data.regions)) return { regions: [], error: "regions is not a list" }
  for (const [i, region] of data.regions.entries()) {
    const error = fieldError(region)
    if (error) return { regions: [], error: `region ${i + 1}: ${error}` }
  }
  return { regions: data.regions.map((region) => ({ ...DEFAULTS, ...region })), error: null }
}

function fieldError(region) {
  if (region === null || typeof region !== "object" || Array.isArray(region)) return "not an object"
  for (const key of NUMBERS) if (!Number.isFinite(region[key])) return `${key} is not a number`
  if (typeof region.text !== "string") return "text is not a string"
  for (const key of Object.keys(region)) {
    if (NUMBERS.includes(key)) continue
    if (!(key in DEFAULTS)) return `unknown field ${key}`
    if (typeof region[key] !== "string") return `${key} is not a string`
  }
  return null
}

// ---- boxes ----

const limit = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high))
const rounded = (value) => Math.round(value * 1e4) / 1e4

// Rounded to a ten-thousandth of the page and kept on it, without changing its size where the page has room.
export function onPage(box) {
  const width = rounded(limit(box.width, MIN_SIDE, 1))
  const height = rounded(limit(box.height, MIN_SIDE, 1))
  const x = rounded(limit(box.x, 0, 1 - width))
  const y = rounded(limit(box.y, 0, 1 - height))
  return { ...box, x, y, width, height }
}

// The box after dragging by (dx, dy): "move", or the name of a handle ("nw" moves the left and the top side).
// A side dragged over its opposite stops a minimum before it.
export function applyDrag(mode, start, dx, dy) {
  if (mode === "move") return onPage({ ...start, x: start.x + dx, y: start.y + dy })
  let { x: left, y: top } = start
  let right = left + start.width
  let bottom = top + start.height
  if (mode.includes("w")) left = limit(left + dx, 0, right - MIN_SIDE)
  if (mode.includes("e")) right = limit(right + dx, left + MIN_SIDE, 1)
  if (mode.includes("n")) top = limit(top + dy, 0, bottom - MIN_SIDE)
  if (mode.includes("s")) bottom = limit(bottom + dy, top + MIN_SIDE, 1)
  return onPage({ ...start, x: left, y: top, width: right - left, height: bottom - top })
}

// The box between two corners, in any order.
export function boxBetween(ax, ay, bx, by) {
  const x = limit(Math.min(ax, bx), 0, 1)
  const y = limit(Math.min(ay, by), 0, 1)
  return onPage({ x, y, width: limit(Math.max(ax, bx), 0, 1) - x, height: limit(Math.max(ay, by), 0, 1) - y })
}

const edges = (box, axis) =>
  axis === "x" ? [box.x, box.x + box.width / 2, box.x + box.width] : [box.y, box.y + box.height / 2, box.y + box.height]

// Pull the dragged sides to the page's and the other boxes' sides and middles that lie within the tolerance.
export function snap(mode, box, others, toleranceX, toleranceY) {
  const guides = []
  let snapped = box
  for (const [axis, tolerance] of [["x", toleranceX], ["y", toleranceY]]) {
    const targets = [0, 0.5, 1, ...others.flatMap((other) => edges(other, axis))]
    const best = nearest(movingEdges(mode, snapped, axis), targets, tolerance)
    if (!best) continue
    const [dx, dy] = axis === "x" ? [best.shift, 0] : [0, best.shift]
    snapped = applyDrag(mode, snapped, dx, dy)
    guides.push({ axis, at: best.target })
  }
  return { box: snapped, guides }
}

function movingEdges(mode, box, axis) {
  const [low, middle, high] = edges(box, axis)
  if (mode === "move") return [low, middle, high]
  const [first, last] = axis === "x" ? ["w", "e"] : ["n", "s"]
  return [...(mode.includes(first) ? [low] : []), ...(mode.includes(last) ? [high] : [])]
}

function nearest(from, targets, tolerance) {
  let best = null
  for (const edge of from) {
    for (const target of targets) {
      const shift = target - edge
      if (Math.abs(shift) <= tolerance && (!best || Math.abs(shift) < Math.abs(best.shift))) best = { shift, target }
    }
  }
  return best
}

export function overlap(a, b) {
  const across = Math.max(0, Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x))
  const down = Math.max(0, Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y))
  const smaller = Math.min(a.width * a.height, b.width * b.height)
  return smaller > 0 ? (across * down) / smaller : 0
}

// ---- lists: every function returns a new list and the index to select ----

export function added(regions, region) {
  return { regions: [...regions, region], selected: regions.length }
}

export function duplicated(regions, index) {
  const source = regions[index]
  const copy = onPage({ ...source, x: source.x + 0.03, y: source.y + 0.03 })
  return { regions: [...regions.slice(0, index + 1), copy, ...regions.slice(index + 1)], selected: index + 1 }
}

export function removed(regions, index) {
  const left = regions.filter((_, i) => i !== index)
  return { regions: left, selected: Math.min(index, left.length - 1) }
}

// Move a region up (+1) or down (-1) in drawing order.
export function reordered(regions, index, step) {
  const target = limit(index + step, 0, regions.length - 1)
  const list = regions.slice()
  list.splice(target, 0, ...list.splice(index, 1))
  return { regions: list, selected: target }
}

export function changed(regions, index, fields) {
  return regions.map((region, i) => (i === index ? { ...region, ...fields } : region))
}

export function readingOrder(regions) {
  const before = (a, b, first, second) => regions[a][first] - regions[b][first] || regions[a][second] - regions[b][second]
  let left = regions.map((_, i) => i).sort((a, b) => before(a, b, "y", "x"))
  const order = []
  while (left.length) {
    const first = regions[left[0]]
    let row = left.filter((i) => regions[i].y + regions[i].height / 2 <= first.y + first.height)
    if (!row.length) row = left.slice(0, 1)
    order.push(...row.slice().sort((a, b) => before(a, b, "x", "y")))
    left = left.filter((i) => !row.includes(i))
  }
  return order
}

// ---- text ----

export function advance(text) {
  const wide = (text.match(WIDE) || []).length
  return wide + NARROW * ([...text].length - wide)
}

export function wrap(text, width, measure = advance) {
  const lines = []
  for (const paragraph of text.trim().split("\n")) {
    let line = ""
    for (const piece of paragraph.trim().replace(/\s+/g, " ").match(PIECE) || []) {
      if (measure((line + piece).trimEnd()) <= width) {
        line += piece
        continue
      }
      if (line) lines.push(line.trimEnd())
      line = piece.trimStart()
      if (measure(line.trimEnd()) > width) return null
    }
    lines.push(line.trimEnd())
  }
  return lines
}

export function fittingSize(text, width, height, measure = advance) {
  let low = 0
  let high = height / LINE_HEIGHT
  for (let i = 0; i < 14; i++) {
    const size = (low + high) / 2
    const lines = wrap(text, size ? width / size : 0, measure)
    if (lines && lines.length * LINE_HEIGHT * size <= height) low = size
    else high = size
  }
  return low
}

// Font size in pixels at which a region's text fits its box on a page of this size.
export function regionSize(region, pageWidth, pageHeight) {
  const [width, height] = [region.width * pageWidth, region.height * pageHeight]
  const text = region.text.slice(0, 2 * MAX_TEXT) // a hostile megabyte must not freeze the page
  if (region.direction !== "vertical") return fittingSize(text, width, height)
  return fittingSize(text.replace(/\s+/g, ""), height, width, (line) => LINE_HEIGHT * [...line].length)
}

export const isColor = (text) => /^#[0-9a-f]{6}$/i.test(text)

// ---- what is wrong with a layout: [{ index, why }], index -1 for the whole ----

export const REASONS = {
  en: {
    many: (count) => `${count} boxes; at most ${MAX_REGIONS}`,
    covers: (share, other) => `covers ${share}% of box ${other} or of itself`,
    empty: "no text yet",
    long: `more than ${MAX_TEXT} characters`,
    outside: "outside the page",
    small: `text too small to read (under ${MIN_FONT} px)`,
  },
  zh: {
    many: (count) => `共 ${count} 个文字框，最多 ${MAX_REGIONS} 个`,
    covers: (share, other) => `与文字框 ${other} 重叠 ${share}%`,
    empty: "还没有文字",
    long: `超过 ${MAX_TEXT} 个字符`,
    outside: "超出页面",
    small: `文字太小，无法辨认（小于 ${MIN_FONT} px）`,
  },
}

// `known` keeps what was found about regions on a page of this size: fitting a long text takes milliseconds.
export function problems(regions, pageWidth, pageHeight, reasons = REASONS.en, known = new WeakMap()) {
  const found = []
  if (regions.length > MAX_REGIONS) found.push({ index: -1, why: reasons.many(regions.length) })
  for (const [index, region] of regions.entries()) {
    if (!known.has(region)) known.set(region, problem(region, pageWidth, pageHeight))
    const why = known.get(region)
    if (why) found.push({ index, why: reasons[why] })
    for (let j = 0; j < index && regions.length <= MAX_REGIONS; j++) {
      const share = overlap(region, regions[j])
      if (share > MAX_OVERLAP) found.push({ index, why: reasons.covers(Math.round(100 * share), j + 1) })
    }
  }
  return found
}

function problem(region, pageWidth, pageHeight) {
  if (!region.text.trim()) return "empty"
  if ([...region.text].length > MAX_TEXT) return "long"
  const off = region.x < -1e-3 || region.y < -1e-3 || region.x + region.width > 1.001 || region.y + region.height > 1.001
  if (off || region.width <= 0 || region.height <= 0) return "outside"
  return regionSize(region, pageWidth, pageHeight) < MIN_FONT ? "small" : null
}

// ---- undo ----

const HISTORY = 200

export function history(state) {
  return { past: [], present: state, future: [] }
}

export function remember(log, state) {
  if (state === log.present) return log
  return { past: [...log.past, log.present].slice(-HISTORY), present: state, future: [] }
}

export function undone(log) {
  if (!log.past.length) return log
  return { past: log.past.slice(0, -1), present: log.past.at(-1), future: [log.present, ...log.future] }
}

export function redone(log) {
  if (!log.future.length) return log
  return { past: [...log.past, log.present], present: log.future[0], future: log.future.slice(1) }
}

// ---- view: the page is drawn `zoom` times its fitted size, shifted by (left, top) in fractions of the frame ----

export const MAX_ZOOM = 8

// Zoom by a factor with the point (px, py) of the frame, in fractions, staying under the pointer.
export function zoomedAt(view, factor, px, py) {
  const zoom = limit(view.zoom * factor, 1, MAX_ZOOM)
  const ratio = zoom / view.zoom
  return panned({ zoom, left: px - (px - view.left) * ratio, top: py - (py - view.top) * ratio }, 0, 0)
}

export function panned(view, dx, dy) {
  return { ...view, left: limit(view.left + dx, 1 - view.zoom, 0), top: limit(view.top + dy, 1 - view.zoom, 0) }
}

// Largest size of the page's aspect inside a frame, in pixels.
export function fitted(frameWidth, frameHeight, pageWidth, pageHeight) {
  const scale = Math.min(frameWidth / pageWidth, frameHeight / pageHeight)
  return { width: pageWidth * scale, height: pageHeight * scale }
}

// ---- presets ----

const band = (role, text, y, height, fields = {}) => newRegion({ x: 0.06, y, width: 0.88, height }, { role, text, ...fields })

export const PRESETS = {
  poster: [
    band("title", "BIG NEWS", 0.04, 0.25),
    band("body", "Music, food and friends", 0.4, 0.2),
    band("caption", "Saturday 8 pm", 0.82, 0.13),
  ],
  menu: [
    band("title", "MENU", 0.03, 0.15),
    ...["Soup", "Noodles", "Tea"].flatMap((dish, i) => [
      newRegion({ x: 0.08, y: 0.26 + 0.2 * i, width: 0.5, height: 0.13 }, { role: "label", text: dish, align: "left" }),
      newRegion({ x: 0.66, y: 0.26 + 0.2 * i, width: 0.26, height: 0.13 }, { role: "price", text: `$${4 + 2 * i}`, align: "right" }),
    ]),
  ],
  "book cover": [
    band("title", "THE LONG WAY", 0.1, 0.26),
    band("subtitle", "A novel", 0.4, 0.1),
    band("caption", "Ann Author", 0.86, 0.09),
  ],
  slide: [
    band("title", "Three steps", 0.05, 0.2, { align: "left" }),
    ...["Plan", "Build", "Show"].map((step, i) => band("body", step, 0.34 + 0.2 * i, 0.14, { align: "left" })),
  ],
  label: [
    band("title", "HONEY", 0.22, 0.28),
    band("subtitle", "wild flowers", 0.54, 0.14),
    band("caption", "250 g", 0.8, 0.12),
  ],
}
