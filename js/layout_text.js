// How large a text may be in its box, and what is wrong with a layout. Limits and the fitting rule repeat
// pipeline/layout/check.py and text_fit.py; tests/data/layout_fit.json keeps the two equal.

import { overlap } from "./layout_geometry.js"

export const MAX_REGIONS = 100
export const MAX_TEXT = 1000
export const MIN_FONT = 12
export const MAX_OVERLAP = 0.35
export const LINE_HEIGHT = 1.2

const NARROW = 0.6
const WIDE_SET =
  "\\u1100-\\u115f\\u2e80-\\ua4cf\\uac00-\\ud7a3\\uf900-\\ufaff\\ufe30-\\ufe6f\\uff00-\\uff60\\uffe0-\\uffe6" +
  "\\u{1f300}-\\u{1faff}\\u{20000}-\\u{3fffd}"
const CLOSING = "[，。、！？；：）」』】》〉”’]"
const WIDE = new RegExp(`[${WIDE_SET}]`, "gu")
const PIECE = new RegExp(`\\s*(?:[${WIDE_SET}]|(?:(?![${WIDE_SET}])\\S)+)${CLOSING}*`, "gu")

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

// Sentences for what is wrong with a region, or with the whole layout.
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

// [{ index, why }], index -1 for the whole. `known` keeps what was found about regions on a page of this size: fitting a long text takes milliseconds.
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
