// Several boxes at once.

import assert from "node:assert/strict"
import { test } from "node:test"
import * as a from "../../js/layout_arrange.js"

const box = (x, y, width, height) => ({ text: "", x, y, width, height })
const regions = [box(0.1, 0.1, 0.2, 0.1), box(0.5, 0.3, 0.3, 0.2), box(0.2, 0.7, 0.1, 0.1)]
const all = [0, 1, 2]
const of = (list, key) => list.map((region) => region[key])

test("boxes move together and stop together at the page's edge", () => {
  assert.deepEqual(of(a.movedAll(regions, [0, 1], 0.1, 0), "x"), [0.2, 0.6, 0.2])
  assert.deepEqual(of(a.movedAll(regions, [0, 1], 0.9, 0), "x"), [0.3, 0.7, 0.2])
  assert.deepEqual(of(a.movedAll(regions, all, -1, -1), "y"), [0, 0.2, 0.6])
})

test("boxes align to a side or middle of theirs, one alone to the page's", () => {
  assert.deepEqual(of(a.aligned(regions, all, "left"), "x"), [0.1, 0.1, 0.1])
  assert.deepEqual(of(a.aligned(regions, all, "right"), "x"), [0.6, 0.5, 0.7])
  assert.deepEqual(of(a.aligned(regions, all, "center"), "x"), [0.35, 0.3, 0.4])
  assert.deepEqual(of(a.aligned(regions, all, "bottom"), "y"), [0.7, 0.6, 0.7])
  assert.deepEqual(of(a.aligned(regions, [1], "center"), "x"), [0.1, 0.35, 0.2])
  assert.deepEqual(of(a.aligned(regions, [2], "top"), "y"), [0.1, 0.3, 0])
})

test("distributed boxes have equal gaps and the outermost stay", () => {
  const list = a.distributed(regions, all, "y")
  assert.deepEqual(of(list, "y"), [0.1, 0.35, 0.7])
  const gaps = [list[1].y - list[0].y - 0.1, list[2].y - list[1].y - 0.2]
  assert.ok(Math.abs(gaps[0] - gaps[1]) < 1e-3)
  assert.deepEqual(of(a.distributed(regions, [1, 0, 2], "x"), "y"), of(regions, "y"))
})

test("what is removed, changed and duplicated is what was chosen", () => {
  assert.deepEqual(of(a.removedAll(regions, [0, 2]).regions, "x"), [0.5])
  assert.deepEqual(a.removedAll(regions, [0, 2]).chosen, [0])
  assert.deepEqual(a.removedAll(regions, all), { regions: [], chosen: [] })
  assert.deepEqual(of(a.changedAll(regions, [1, 2], { text: "A" }), "text"), ["", "A", "A"])
  const { regions: more, chosen } = a.duplicatedAll(regions, [0, 1])
  assert.deepEqual(chosen, [3, 4])
  assert.deepEqual([more[3].x, more[4].x, more[4].y], [0.13, 0.53, 0.33])
})

test("pasted boxes keep their place on another page and step aside on their own", () => {
  assert.deepEqual(of(a.pasted([], regions).regions, "x"), of(regions, "x"))
  const twice = a.pasted(a.pasted(regions, [regions[0]]).regions, [regions[0]])
  assert.deepEqual(of(twice.regions.slice(3), "x"), [0.13, 0.16])
  const corner = box(0.8, 0.9, 0.2, 0.1)
  assert.equal(a.pasted([corner], [corner]).regions.length, 2)
})

test("a rectangle touches what it crosses, not its neighbours", () => {
  assert.deepEqual(a.touched(regions, box(0, 0, 0.55, 0.35)), [0, 1])
  assert.deepEqual(a.touched(regions, box(0.31, 0.1, 0.1, 0.1)), [])
})
