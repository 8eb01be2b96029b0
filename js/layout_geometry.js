// What the layout editor knows about boxes: pure functions without a page, tested by `node --test tests/js`.
// Boxes are fractions 0..1 of the page from its top left corner.

export const MIN_SIDE = 0.02
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"]

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

// Functions on lists of regions return a new list and the index to select.

export function added(regions, region) {
  return { regions: [...regions, region], selected: regions.length }
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

// A view draws the page `zoom` times its fitted size, shifted by (left, top) in fractions of the frame.

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
