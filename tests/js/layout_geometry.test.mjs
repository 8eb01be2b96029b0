import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import * as geometry from "../../js/layout_geometry.js"
import * as fit from "../../js/layout_text.js"
import * as value from "../../js/layout_value.js"

const g = { ...geometry, ...fit, ...value }

const shared = JSON.parse(readFileSync(new URL("../data/layout_fit.json", import.meta.url)))
const box = (x, y, width, height, text = "A") => g.newRegion({ x, y, width, height }, { text })
const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`)

test("fitting sizes and line breaks equal those of pipeline/layout/regions.py", () => {
  for (const row of shared.fits) {
    const region = { text: row.text, width: row.width, height: row.height }
    assert.ok(Math.abs(g.regionSize(region, 1, 1) - row.horizontal) < 1e-5, row.text)
    assert.ok(Math.abs(g.regionSize({ ...region, direction: "vertical" }, 1, 1) - row.vertical) < 1e-5, row.text)
    assert.deepEqual(g.wrap(row.text, 8), row.lines)
  }
})

test("reading order equals that of pipeline/layout/regions.py", () => {
  const regions = shared.order.boxes.map(([x, y, width, height]) => box(x, y, width, height))
  assert.deepEqual(g.readingOrder(regions), shared.order.order)
})

test("a moved box keeps its size and stops at the page's edge", () => {
  const moved = g.applyDrag("move", box(0.5, 0.5, 0.3, 0.2), 0.9, -0.9)
  assert.deepEqual([moved.x, moved.y, moved.width, moved.height], [0.7, 0, 0.3, 0.2])
})

test("each handle moves its own sides and no other", () => {
  const start = box(0.3, 0.3, 0.4, 0.4)
  for (const mode of g.HANDLES) {
    const end = g.applyDrag(mode, start, 0.1, 0.1)
    near(end.x, mode.includes("w") ? 0.4 : 0.3)
    near(end.y, mode.includes("n") ? 0.4 : 0.3)
    near(end.x + end.width, mode.includes("e") ? 0.8 : 0.7)
    near(end.y + end.height, mode.includes("s") ? 0.8 : 0.7)
  }
})

test("a side dragged over its opposite stops at the smallest box", () => {
  const end = g.applyDrag("w", box(0.3, 0.3, 0.4, 0.4), 5, 0)
  near(end.width, g.MIN_SIDE)
  near(end.x + end.width, 0.7)
})

test("random drags never leave the page and never invert a box", () => {
  let seed = 1
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647
  for (let i = 0; i < 2000; i++) {
    const start = g.boxBetween(random(), random(), random(), random())
    const mode = ["move", ...g.HANDLES][i % 9]
    const end = g.applyDrag(mode, start, random() * 3 - 1.5, random() * 3 - 1.5)
    assert.ok(end.width >= g.MIN_SIDE - 1e-9 && end.height >= g.MIN_SIDE - 1e-9)
    assert.ok(end.x >= 0 && end.y >= 0 && end.x + end.width <= 1 + 1e-9 && end.y + end.height <= 1 + 1e-9)
  }
})

test("a box drawn from any corner is the same", () => {
  const expected = g.boxBetween(0.1, 0.2, 0.5, 0.6)
  assert.deepEqual(g.boxBetween(0.5, 0.6, 0.1, 0.2), expected)
  assert.deepEqual(g.boxBetween(0.5, 0.2, 0.1, 0.6), expected)
  assert.deepEqual(g.boxBetween(-3, 0, 9, 1), { x: 0, y: 0, width: 1, height: 1 })
})

test("a moved box snaps to the page's middle and to its neighbours", () => {
  const { box: centred, guides } = g.snap("move", box(0.345, 0.7, 0.3, 0.1), [], 0.01, 0.01)
  near(centred.x, 0.35)
  assert.deepEqual(guides, [{ axis: "x", at: 0.5 }])
  near(g.snap("move", box(0.2, 0.305, 0.1, 0.1), [box(0.6, 0.3, 0.2, 0.2)], 0.01, 0.01).box.y, 0.3)
})

test("snapping while resizing moves only the dragged side", () => {
  const { box: end } = g.snap("e", box(0.2, 0.2, 0.295, 0.2), [], 0.01, 0.01)
  near(end.x, 0.2)
  near(end.width, 0.3)
})

test("nothing snaps outside the tolerance", () => {
  const start = box(0.23, 0.23, 0.11, 0.11)
  assert.deepEqual(g.snap("move", start, [], 0.001, 0.001), { box: start, guides: [] })
})

test("lists change by copy", () => {
  const regions = [box(0, 0, 0.1, 0.1, "a"), box(0.2, 0, 0.1, 0.1, "b"), box(0.4, 0, 0.1, 0.1, "c")]
  const names = (result) => result.regions.map((r) => r.text).join("")
  assert.equal(names(g.reordered(regions, 0, 1)), "bac")
  assert.equal(names(g.reordered(regions, 2, 1)), "abc")
  assert.equal(regions.map((r) => r.text).join(""), "abc")
})

test("a value survives a round trip with hostile text", () => {
  const text = `</script><img src=x onerror=alert(1)> "quotes" \\ 🎉 \u202e ${"x".repeat(1e6)}`
  const regions = [box(0.1, 0.1, 0.2, 0.2, text)]
  assert.deepEqual(g.parse(g.serialise(regions)), { regions, error: null })
})

test("another version, broken JSON and foreign fields are errors, not empty layouts", () => {
  const value = { format: g.FORMAT, version: g.VERSION, regions: [] }
  assert.equal(g.parse(JSON.stringify(value)).error, null)
  assert.match(g.parse(JSON.stringify({ ...value, version: 9 })).error, /version 9; this editor reads 1/)
  assert.match(g.parse("{").error, /not valid JSON/)
  assert.match(g.parse("[1]").error, /not a "glm-image-layout"/)
  assert.match(g.parse(JSON.stringify({ ...value, regions: 3 })).error, /not a list/)
  assert.match(g.parse(JSON.stringify({ ...value, regions: [{ text: "a", x: 0, y: 0, width: 1 }] })).error, /region 1: height/)
  assert.match(g.parse(JSON.stringify({ ...value, regions: [{ ...box(0, 0, 1, 1), extra: 1 }] })).error, /unknown field extra/)
})

test("an empty value is an empty layout", () => {
  for (const value of ["", null, undefined]) assert.deepEqual(g.parse(value), { regions: [], error: null })
})

test("problems name the box and the reason", () => {
  const why = (regions) => g.problems(regions, 1024, 1024).map((p) => `${p.index}: ${p.why}`).join("; ")
  assert.equal(why([box(0.1, 0.1, 0.5, 0.2)]), "")
  assert.match(why([box(0.1, 0.1, 0.5, 0.2, " ")]), /0: no text/)
  assert.match(why([box(0.9, 0.1, 0.5, 0.2)]), /outside the page/)
  assert.match(why([box(0.1, 0.1, 0.02, 0.02, "far too much text for it")]), /too small to read/)
  assert.match(why([box(0.1, 0.1, 0.5, 0.2), box(0.12, 0.1, 0.5, 0.2)]), /1: covers 96% of box 1/)
  assert.match(why([box(0.1, 0.1, 0.5, 0.2, "x".repeat(1001))]), /more than 1000/)
  assert.match(why(Array.from({ length: 500 }, () => box(0, 0, 0.1, 0.1))), /500 boxes; at most 100/)
})

test("a megabyte of text is measured in well under a second", () => {
  const start = performance.now()
  g.problems([box(0.1, 0.1, 0.5, 0.5, "word ".repeat(200000))], 1024, 1024)
  assert.ok(performance.now() - start < 500)
})

test("undo and redo walk the same states and a new change drops the future", () => {
  let log = g.history("a")
  log = g.remember(g.remember(log, "b"), "c")
  assert.equal(g.remember(log, "c"), log)
  assert.equal(g.undone(g.undone(g.undone(log))).present, "a")
  assert.equal(g.redone(g.undone(log)).present, "c")
  const forked = g.remember(g.undone(log), "d")
  assert.equal(g.redone(forked).present, "d")
  assert.equal(g.undone(forked).present, "b")
})

test("history keeps the latest 200 states", () => {
  let log = g.history(0)
  for (let i = 1; i <= 500; i++) log = g.remember(log, i)
  assert.equal(log.past.length, 200)
  assert.equal(log.past[0], 300)
})

test("zooming keeps the point under the pointer and the page in its frame", () => {
  const view = g.zoomedAt({ zoom: 1, left: 0, top: 0 }, 2, 0.25, 0.75)
  near((0.25 - view.left) / view.zoom, 0.25)
  near((0.75 - view.top) / view.zoom, 0.75)
  assert.deepEqual(g.zoomedAt(view, 0.01, 0.5, 0.5), { zoom: 1, left: 0, top: 0 })
  assert.equal(g.zoomedAt(view, 1e9, 0.5, 0.5).zoom, g.MAX_ZOOM)
  assert.deepEqual(g.panned({ zoom: 1, left: 0, top: 0 }, 5, -5), { zoom: 1, left: 0, top: 0 })
})

test("presets have no problems on the page they are meant for", () => {
  const pages = { poster: [768, 1024], menu: [768, 1024], "book cover": [704, 1024], slide: [1024, 576], label: [512, 512] }
  assert.deepEqual(Object.keys(g.PRESETS), Object.keys(pages))
  for (const [name, [width, height]] of Object.entries(pages)) assert.deepEqual(g.problems(g.PRESETS[name], width, height), [], name)
})
