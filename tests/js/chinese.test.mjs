// What nodes say, in Chinese.

import assert from "node:assert/strict"
import { test } from "node:test"
import { relabel, rename, translateRefusals, translated, value } from "../../js/chinese.js"

test("an estimate of the devices is Chinese line by line", () => {
  const english = [
    "small (bundled), 4 images of 192x96 px: fits, but is slow",
    "cuda:0 lacks 2.0 GiB",
    "Try a smaller image or fewer at once, w8 weights",
    "placement: planner and decoder take turns",
    "  glyph encoder  cpu     float32   5 MiB weights, 15 MiB work",
    "  peak on cpu: 0.1 GiB of 20.0 GiB that may be used",
  ]
  assert.deepEqual(translated(english.join("\n")).split("\n"), [
    "small（自带），4 张图像，192x96 像素：可以运行，但较慢",
    "cuda:0 缺少 2.0 GiB",
    "请尝试：较小的图像或一次更少或w8 权重",
    "放置方式：规划器与解码器轮流加载",
    "  字形编码器  cpu     float32   5 MiB 权重，15 MiB 运算",
    "  cpu 峰值：0.1 GiB，可用 20.0 GiB",
  ])
})

test("an error is Chinese with what it quotes unchanged, and an unknown one stays whole", () => {
  assert.equal(
    translated("the positive conditioning's plan is 192x96 px, the latent 128x96 px; give both the same size, for a second sampler a whole multiple, or put Resize GLM-Image Plan before the conditioning"),
    "正面条件的规划是 192x96 像素，latent 是 128x96 像素；请使两者尺寸相同，第二次采样可用整数倍，或在条件之前加“缩放 GLM-Image 规划”",
  )
  assert.equal(translated("width 1000 is not a multiple of 32; use 992 or 1024"), "宽度 1000 不是 32 的倍数；请用 992 或 1024")
  const strange = "$& {0} nobody translated (this) [[x|y]]"
  assert.equal(translated(strange), strange)
  assert.equal(translated('texts: $& | {0}'), '文字：$& | {0}')
})

test("values of combos are Chinese, names of files and dtypes are not", () => {
  assert.deepEqual(["auto", "from the checkpoint", "bf16", "lora.safetensors"].map(value), ["自动", "来自模型", "bf16", "lora.safetensors"])
})

test("refusals are Chinese at this pack's nodes and as they came at others", () => {
  const english = "the prompt is empty; describe the image, with the texts to draw in quotes"
  const refusals = {
    1: { class_type: "GLMImagePlan", errors: [{ details: english }, {}] },
    2: { class_type: "KSampler", errors: [{ details: english }] },
  }
  translateRefusals(refusals)
  assert.deepEqual(refusals[1].errors, [{ details: "提示词是空的；请描述图像，要绘制的文字放在引号里" }, { details: "" }])
  assert.equal(refusals[2].errors[0].details, english)
  translateRefusals(undefined)
})

test("a node whose names were lost gets them back, and what has none keeps its own", () => {
  const names = { display_name: "规划", description: "做规划", inputs: { count: { name: "数量", tooltip: "几个" } }, outputs: { 0: { name: "规划" } } }
  const data = { display_name: "Plan", description: "plans", input: { required: { count: ["INT", { min: 1 }], other: ["INT"] }, optional: undefined } }
  rename(data, names)
  assert.deepEqual([data.display_name, data.description], ["规划", "做规划"])
  assert.deepEqual(data.input.required, { count: ["INT", { min: 1, tooltip: "几个" }], other: ["INT"] })
  const node = {
    inputs: [{ name: "count" }, { name: "other", localized_name: "other" }],
    widgets: [{ name: "count", label: "count" }, { name: "message", label: "消息" }],
    outputs: [{ name: "plan" }, { name: "image", localized_name: "image" }],
  }
  relabel(node, names)
  assert.deepEqual(node.inputs.map((input) => input.localized_name), ["数量", "other"])
  assert.deepEqual(node.widgets.map((widget) => widget.label), ["数量", "消息"])
  assert.deepEqual(node.outputs.map((output) => output.localized_name), ["规划", "image"])
})
