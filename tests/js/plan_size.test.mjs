// Sizes that follow a plan, over small graphs as the page holds them.

import assert from "node:assert/strict"
import { test } from "node:test"
import { followed, modelOf, planSize, sizeOwner } from "../../js/plan_size.js"

// {id: [type, widgets, {input: id of its source}]} -> nodes by id.
function graph(described) {
  const links = {}
  const nodes = {}
  const whole = { links, getNodeById: (id) => nodes[id] }
  for (const [id, [type, values, from]] of Object.entries(described)) {
    const inputs = Object.entries(from).map(([name, origin], i) => {
      links[`${id}.${i}`] = { origin_id: origin }
      return { name, link: `${id}.${i}` }
    })
    const widgets = Object.entries(values).map(([name, value]) => ({ name, value }))
    nodes[id] = { id, type, graph: whole, inputs, widgets }
  }
  return nodes
}

const size = (width, height) => ({ width, height })

test("a latent has the size of the plan behind it, through nodes that hand plans on", () => {
  const nodes = graph({
    loader: ["GLMImageLoader", { model: "small" }, {}],
    guided: ["GLMImageLayoutGuidance", {}, { planner: "loader" }],
    plan: ["GLMImagePlan", size(192, 96), { planner: "guided" }],
    saved: ["GLMImageSavePlan", {}, { plan: "plan" }],
    reroute: ["Reroute", {}, { "": "saved" }],
    latent: ["EmptyGLMImageLatent", size(1024, 1024), { plan: "reroute" }],
  })
  assert.deepEqual(planSize(nodes.latent), [192, 96])
  assert.equal(modelOf(nodes.plan), "small")
})

test("a plan sized by a layout has the layout's size; a computed size is unknown before the run", () => {
  const nodes = graph({
    page: ["GLMImageTextLayout", size(640, 320), {}],
    number: ["PrimitiveInt", { value: 64 }, {}],
    one: ["GLMImagePlan", size(1024, 1024), { width: "page", height: "page" }],
    two: ["GLMImagePlan", size(1024, 1024), { width: "number", height: "page" }],
    file: ["GLMImageLoadPlan", {}, {}],
    shape: ["GLMImagePlan", size(0, 0), {}],
    first: ["EmptyGLMImageLatent", {}, { plan: "one" }],
    second: ["EmptyGLMImageLatent", {}, { plan: "two" }],
    third: ["EmptyGLMImageLatent", {}, { plan: "file" }],
    fourth: ["EmptyGLMImageLatent", {}, { plan: "shape" }],
  })
  assert.equal(sizeOwner(nodes.one), nodes.page)
  assert.deepEqual([nodes.first, nodes.second, nodes.third, nodes.fourth].map(planSize), [[640, 320], null, null, null])
})

test("a resized plan has its new size, unless a latent gives it", () => {
  const nodes = graph({
    plan: ["GLMImagePlan", size(192, 96), {}],
    other: ["EmptyLatentImage", {}, {}],
    fields: ["GLMImageResizePlan", size(384, 192), { plan: "plan" }],
    latent: ["GLMImageResizePlan", size(384, 192), { plan: "plan", latent: "other" }],
    a: ["EmptyGLMImageLatent", {}, { plan: "fields" }],
    b: ["EmptyGLMImageLatent", {}, { plan: "latent" }],
  })
  assert.deepEqual(planSize(nodes.a), [384, 192])
  assert.equal(planSize(nodes.b), null)
})

test("a model's usual size takes the place of another's, and never of a size that was chosen", () => {
  const usual = { small: [192, 96], release: [1024, 1024] }
  assert.deepEqual(followed([1024, 1024], "small", usual), [192, 96])
  assert.deepEqual(followed([192, 96], "release", usual), [1024, 1024])
  assert.deepEqual(followed([768, 1024], "small", usual), [768, 1024])
  assert.deepEqual(followed([1024, 1024], "unknown", usual), [1024, 1024])
})
