// What the layout editor does with several boxes at once: pure functions on lists of regions and of chosen indexes.
// Tested by `node --test tests/js`.

import { onPage } from "./layout_geometry.js"

export const ALIGNMENTS_OF_BOXES = ["left", "center", "right", "top", "middle", "bottom"]

const PAGE = { x: 0, y: 0, width: 1, height: 1 }

// The smallest box around some regions.
export function around(regions, chosen) {
  const boxes = chosen.map((i) => regions[i])
  const x = Math.min(...boxes.map((box) => box.x))
  const y = Math.min(...boxes.map((box) => box.y))
  const right = Math.max(...boxes.map((box) => box.x + box.width))
  const bottom = Math.max(...boxes.map((box) => box.y + box.height))
  return { x, y, width: right - x, height: bottom - y }
}

export function changedAll(regions, chosen, fields) {
  return regions.map((region, i) => (chosen.includes(i) ? { ...region, ...fields } : region))
}

// Moved together as far as all of them stay on the page.
export function movedAll(regions, chosen, dx, dy) {
  const box = around(regions, chosen)
  const target = onPage({ ...box, x: box.x + dx, y: box.y + dy })
  return shifted(regions, chosen, () => [target.x - box.x, target.y - box.y])
}

function shifted(regions, chosen, by) {
  return regions.map((region, i) => {
    if (!chosen.includes(i)) return region
    const [dx, dy] = by(region, i)
    return onPage({ ...region, x: region.x + dx, y: region.y + dy })
  })
}

// To a side or the middle of the boxes together; one box alone to the page's.
export function aligned(regions, chosen, edge) {
  const box = chosen.length > 1 ? around(regions, chosen) : PAGE
  const across = ["left", "center", "right"].includes(edge)
  const share = { left: 0, top: 0, center: 0.5, middle: 0.5, right: 1, bottom: 1 }[edge]
  return shifted(regions, chosen, (region) => {
    if (across) return [box.x + share * (box.width - region.width) - region.x, 0]
    return [0, box.y + share * (box.height - region.height) - region.y]
  })
}

// Equal gaps between neighbours; the outermost two stay. `axis` is "x" or "y".
export function distributed(regions, chosen, axis) {
  const side = axis === "x" ? "width" : "height"
  const order = chosen.slice().sort((a, b) => regions[a][axis] - regions[b][axis])
  const sizes = order.map((i) => regions[i][side])
  const first = regions[order[0]][axis]
  const last = regions[order.at(-1)][axis] + sizes.at(-1)
  const gap = (last - first - sizes.reduce((sum, size) => sum + size, 0)) / (order.length - 1)
  const places = new Map()
  let at = first
  for (const [k, i] of order.entries()) {
    places.set(i, at)
    at += sizes[k] + gap
  }
  return shifted(regions, chosen, (region, i) => (axis === "x" ? [places.get(i) - region.x, 0] : [0, places.get(i) - region.y]))
}

export function removedAll(regions, chosen) {
  const left = regions.filter((_, i) => !chosen.includes(i))
  const next = Math.min(Math.min(...chosen), left.length - 1)
  return { regions: left, chosen: next < 0 ? [] : [next] }
}

// Copies on top, a step aside where a box stands at exactly their place already.
export function pasted(regions, copies) {
  const taken = (copy) => regions.some((region) => Math.hypot(region.x - copy.x, region.y - copy.y) < 1e-3)
  let moved = copies
  for (let step = 0; step < 20 && moved.some(taken); step++) {
    const before = moved
    moved = movedAll(moved, moved.map((_, i) => i), 0.03, 0.03)
    if (moved.every((copy, i) => copy.x === before[i].x && copy.y === before[i].y)) break
  }
  return { regions: [...regions, ...moved], chosen: moved.map((_, i) => regions.length + i) }
}

export function duplicatedAll(regions, chosen) {
  return pasted(regions, chosen.map((i) => ({ ...regions[i] })))
}

// Indexes of the regions that a rectangle touches.
export function touched(regions, box) {
  const meets = (a) => a.x < box.x + box.width && box.x < a.x + a.width && a.y < box.y + box.height && box.y < a.y + a.height
  return regions.flatMap((region, i) => (meets(region) ? [i] : []))
}
