// ComfyUI's own undo with a layout: node undo_browser.mjs URL "classic"|"vue"
// Draws and names two boxes in the editor, leaves it, and undoes and redoes on the graph. Prints the texts after each step
// as one line of JSON. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and CHROMIUM.

import { newPage, setMode, visit } from "./page.mjs"

const [url, mode] = process.argv.slice(2)
const { browser, page, errors } = await newPage(1300, 1150)
await visit(page, url, "GLMImageTextLayout", "SaveImage")
await setMode(page, mode)
await page.evaluate(() => {
  app.graph.clear()
  const node = LiteGraph.createNode("GLMImageTextLayout")
  node.pos = [90, 150]
  app.graph.add(node)
  node.setSize([520, 940])
  app.canvas.ds.reset()
  app.canvas.setDirty(true, true)
})
// As a saved workflow: loading notes in the graph what mode it is for, and a graph without the note differs from what the
// page's own undo loads, which then counts as a step and ends the redoing.
await page.evaluate(() => app.loadGraphData(app.graph.serialize()))
await page.waitForSelector(".glm-page")
await page.waitForTimeout(1500)

const texts = async () => {
  const value = await page.evaluate(
    () => app.graph.nodes.find((n) => n.type === "GLMImageTextLayout")?.widgets.find((w) => w.name === "layout").value,
  )
  return value ? JSON.parse(value).regions.map((region) => region.text) : value ?? null
}
async function draw(from, to, text) {
  const rect = await page.locator(".glm-page").boundingBox()
  const at = ([x, y]) => [rect.x + x * rect.width, rect.y + y * rect.height]
  await page.mouse.move(...at(from))
  await page.mouse.down()
  await page.mouse.move(...at(to), { steps: 4 })
  await page.mouse.up()
  await page.waitForTimeout(300)
  await page.keyboard.type(text)
  await page.keyboard.press("Escape")
  await page.waitForTimeout(300)
}

await draw([0.1, 0.1], [0.9, 0.3], "OPEN")
await draw([0.2, 0.6], [0.8, 0.8], "LATE")
const drawn = await texts()
await page.mouse.click(1000, 700) // the empty graph
await page.waitForTimeout(500)
async function steps(key, count) {
  const seen = []
  for (let i = 0; i < count; i++) {
    const before = JSON.stringify(await texts())
    await page.keyboard.press(key)
    for (let waited = 0; waited < 50 && JSON.stringify(await texts()) === before; waited++) await page.waitForTimeout(200)
    await page.waitForTimeout(1500) // the page loads all of the graph again, and hears no key meanwhile
    seen.push(await texts())
  }
  return seen
}
const undone = await steps("Control+z", 4)
const redone = await steps("Control+y", 4)
console.log(JSON.stringify({ drawn, undone, redone, errors }))
await browser.close()
