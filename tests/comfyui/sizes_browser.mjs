// Sizes and colours on a running ComfyUI's page: node sizes_browser.mjs URL "classic"|"vue"
// Prints one line of JSON. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and CHROMIUM.

import { newPage, setMode, visit } from "./page.mjs"

const [url, mode] = process.argv.slice(2)
const { browser, page, errors } = await newPage(1300, 900)
await visit(page, url, "GLMImageLoader", "Reroute")
await setMode(page, mode)

const seen = await page.evaluate(async () => {
  const settled = () => new Promise((done) => setTimeout(done, 100))
  const found = {}
  app.graph.clear()
  const add = (type) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    return node
  }
  const widget = (node, name) => node.widgets.find((entry) => entry.name === name)
  const size = (node) => [widget(node, "width").value, widget(node, "height").value]
  const set = (node, name, value) => {
    widget(node, name).value = value
    widget(node, name).callback(value)
  }
  const disabled = (node) => ["width", "height"].map((name) => Boolean(widget(node, name).disabled))
  const [loader, plan, latent] = ["GLMImageLoader", "GLMImagePlan", "EmptyGLMImageLatent"].map(add)
  found.new = size(plan)
  loader.connect(0, plan, "planner")
  await settled()
  found.connected = size(plan)
  set(loader, "model", "GLM-Image/model_index.json")
  await settled()
  found.release = size(plan)
  set(plan, "width", 768)
  set(plan, "height", 512)
  set(loader, "model", "small (bundled)")
  plan.connect(0, latent, "plan")
  await settled()
  found.chosen = size(plan)
  found.latent = { size: size(latent), disabled: disabled(latent) }
  const resize = add("GLMImageResizePlan")
  plan.connect(0, resize, "plan")
  set(resize, "width", 384)
  set(resize, "height", 256)
  resize.connect(0, latent, "plan")
  await settled()
  found.resized = { size: size(latent) }
  latent.disconnectInput(latent.inputs.findIndex((input) => input.name === "plan"))
  await settled()
  found.disconnected = { disabled: disabled(latent) }

  set(plan, "width", 1024)
  set(plan, "height", 1024)
  const saved = app.graph.serialize()
  await app.loadGraphData(structuredClone(saved))
  await settled()
  found.loaded = size(app.graph.nodes.find((node) => node.type === "GLMImagePlan"))

  const types = ["PLANNER", "GLYPH_ENCODER", "PLAN", "LAYOUT", "DEVICES"].map((name) => `GLM_IMAGE_${name}`)
  const colours = () => {
    const classic = app.canvas.constructor.link_type_colors
    const style = getComputedStyle(document.body)
    return Object.fromEntries(types.map((type) => {
      const [a, b] = [classic[type], style.getPropertyValue(`--color-datatype-${type}`)]
      return [type, a === b && app.canvas.default_connection_color_byType[type] === a ? a : ""]
    }))
  }
  found.colours = colours()
  await app.extensionManager.setting.set("Comfy.ColorPalette", "light")
  await settled()
  found.after_palette = colours()
  await app.extensionManager.setting.set("Comfy.ColorPalette", "dark")
  return found
})
console.log(JSON.stringify({ ...seen, errors }))
await browser.close()
