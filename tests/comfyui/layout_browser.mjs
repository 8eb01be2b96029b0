// Drives the layout editor inside a running ComfyUI: node layout_browser.mjs URL "classic"|"vue" PICTURES
// Draws two boxes, types, undoes and redoes, queues, loads the saved PNG back, and times forty boxes. Prints one line of
// JSON. Needs playwright-core (in node_modules, or its folder in PLAYWRIGHT_CORE) and CHROMIUM (/usr/bin/chromium).

import { newPage, setMode, visit } from "./page.mjs"

const [url, mode, pictures] = process.argv.slice(2)
const { browser, page, errors } = await newPage(1300, 1150)
page.on("console", (message) => {
  if (message.type() === "error" && /\/extensions\/.*layout_/.test(message.location().url)) errors.push(message.text())
})
await visit(page, url, "GLMImageTextLayout", "SaveImage")
await setMode(page, mode)
await page.evaluate(() => {
  app.graph.clear()
  const node = LiteGraph.createNode("GLMImageTextLayout")
  node.pos = [90, 150]
  app.graph.add(node)
  node.setSize([520, 940])
  const save = LiteGraph.createNode("SaveImage")
  save.pos = [700, 190]
  app.graph.add(save)
  node.connect(3, save, 0)
  for (const name of ["width", "height"]) {
    const widget = node.widgets.find((w) => w.name === name)
    widget.value = 512
    widget.callback?.(512)
  }
  app.canvas.ds.reset()
  app.canvas.setDirty(true, true)
})
await page.waitForSelector(".glm-page")
await page.waitForTimeout(1500)

const value = () =>
  page.evaluate(() => app.graph.nodes.find((n) => n.type === "GLMImageTextLayout").widgets.find((w) => w.name === "layout").value)
const texts = async () => JSON.parse(await value()).regions.map((region) => region.text)

async function drag(from, to) {
  const rect = await page.locator(".glm-page").boundingBox()
  const at = ([x, y]) => [rect.x + x * rect.width, rect.y + y * rect.height]
  await page.mouse.move(...at(from))
  await page.mouse.down()
  await page.mouse.move(...at([(from[0] + to[0]) / 2, (from[1] + to[1]) / 2]))
  await page.mouse.move(...at(to))
  await page.mouse.up()
  await page.waitForTimeout(200)
}

const before = await page.evaluate(() => app.graph.nodes.find((n) => n.type === "GLMImageTextLayout").pos.join())
await drag([0.1, 0.1], [0.9, 0.3])
await page.keyboard.type("OPEN 24h")
await page.keyboard.press("Escape")
await drag([0.2, 0.6], [0.8, 0.8])
await page.keyboard.type("</script> 营业中")
await page.keyboard.press("Escape")
await page.waitForTimeout(300)
const drawn = await value()
const nodeStayed = before === (await page.evaluate(() => app.graph.nodes.find((n) => n.type === "GLMImageTextLayout").pos.join()))
await page.screenshot({ path: `${pictures}/layout_${mode}.png` })

await page.keyboard.press("Control+z")
await page.keyboard.press("Control+z")
await page.waitForTimeout(200)
const undone = await texts()
await page.keyboard.press("Control+y")
await page.keyboard.press("Control+y")
await page.waitForTimeout(200)
const redone = (await value()) === drawn
await page.keyboard.press("Delete")
await page.waitForTimeout(200)
const afterDelete = { texts: await texts(), nodes: await page.evaluate(() => app.graph.nodes.length) }
await page.keyboard.press("Control+z")
await page.waitForTimeout(200)

const known = Object.keys(await (await page.request.get(`${url}/history`)).json())
await page.evaluate(() => app.queuePrompt(0, 1))
let saved = null
let status = null
for (let i = 0; i < 120 && !saved && status !== "error"; i++) {
  await page.waitForTimeout(250)
  const history = await (await page.request.get(`${url}/history`)).json()
  const entry = Object.entries(history).find(([id]) => !known.includes(id))?.[1]
  status = entry?.status?.status_str
  saved = Object.values(entry?.outputs ?? {}).flatMap((output) => output.images ?? [])[0]
}

// The same again over a picture: it lies under the boxes once the node has run.
await page.evaluate(() => {
  const picture = LiteGraph.createNode("EmptyImage")
  picture.pos = [700, 600]
  app.graph.add(picture)
  picture.widgets.find((w) => w.name === "color").value = 0x3366cc
  const layout = app.graph.nodes.find((n) => n.type === "GLMImageTextLayout")
  picture.connect(0, layout, "background")
  return app.queuePrompt(0, 1)
})
const background = await page
  .waitForFunction(() => document.querySelector(".glm-page").style.backgroundImage, null, { timeout: 30000 })
  .then((handle) => handle.jsonValue(), () => null)
await page.waitForTimeout(500)
await page.screenshot({ path: `${pictures}/layout_${mode}_background.png` })

let reloaded = null
if (saved) {
  const png = await page.request.get(`${url}/view?${new URLSearchParams(saved)}`)
  const bytes = [...(await png.body())]
  await page.evaluate(() => app.graph.clear())
  await page.evaluate((data) => app.handleFile(new File([new Uint8Array(data)], "saved.png", { type: "image/png" })), bytes)
  await page.waitForTimeout(2500)
  reloaded = await value()
  await page.screenshot({ path: `${pictures}/layout_${mode}_reloaded.png` })
}

const frames = await page.evaluate(async () => {
  const node = app.graph.nodes.find((n) => n.type === "GLMImageTextLayout")
  const widget = node.widgets.find((w) => w.name === "layout")
  const regions = Array.from({ length: 40 }, (_, i) => ({
    text: `Box ${i}`, x: 0.02 + 0.19 * (i % 5), y: 0.01 + 0.12 * Math.floor(i / 5), width: 0.17, height: 0.1,
  }))
  widget.value = JSON.stringify({ format: "glm-image-layout", version: 1, regions })
  await new Promise(requestAnimationFrame)
  await new Promise(requestAnimationFrame)
  const { layoutEditor: editor } = widget
  const draw = editor.draw.bind(editor)
  const spent = []
  editor.draw = () => {
    const start = performance.now()
    draw()
    editor.pageElement.getBoundingClientRect()
    spent.push(performance.now() - start)
  }
  editor.frameElement.setPointerCapture = () => {}
  const box = editor.boxes[12].element
  const rect = box.getBoundingClientRect()
  const send = (target, type, dx) => {
    const place = { clientX: rect.x + 20 + dx, clientY: rect.y + 8 + dx / 3, pointerId: 7, bubbles: true }
    target.dispatchEvent(new PointerEvent(type, place))
  }
  send(box, "pointerdown", 0)
  for (let i = 1; i <= 60; i++) {
    send(editor.frameElement, "pointermove", i)
    await new Promise(requestAnimationFrame)
  }
  send(editor.frameElement, "pointerup", 60)
  spent.sort((a, b) => a - b)
  return { count: spent.length, median: spent[Math.floor(spent.length / 2)], worst: spent.at(-1) }
})
await page.screenshot({ path: `${pictures}/layout_${mode}_forty.png` })

console.log(JSON.stringify({ drawn, nodeStayed, undone, redone, afterDelete, status, background, reloaded, frames, errors }))
await browser.close()
