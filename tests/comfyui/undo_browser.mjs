// ComfyUI's own undo with a layout: node undo_browser.mjs URL "classic"|"vue"
// Draws and names two boxes in the editor, leaves it, and undoes and redoes on the graph. Prints the texts after each step
// as one line of JSON. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and CHROMIUM.

import { createRequire } from "node:module"

const [url, mode] = process.argv.slice(2)
const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE ?? "playwright-core")
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
})
const page = await browser.newPage({ viewport: { width: 1300, height: 1150 } })
const errors = []
page.on("pageerror", (error) => errors.push(error.message))

const ready = () => {
  const types = window.LiteGraph?.registered_node_types
  return window.app?.extensionManager && types?.GLMImageTextLayout && types?.SaveImage && window.app.canvas
}
await page.goto(url, { waitUntil: "domcontentloaded", timeout: 120_000 })
await page.waitForFunction(ready, null, { timeout: 120_000 })
await page.waitForTimeout(1500)
await page.evaluate((vue) => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue), mode === "vue")
await page.evaluate(() => {
  app.graph.clear()
  const node = LiteGraph.createNode("GLMImageTextLayout")
  node.pos = [90, 150]
  app.graph.add(node)
  node.setSize([520, 940])
  app.canvas.ds.reset()
  app.canvas.setDirty(true, true)
  app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
})
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
    // The page loads all of the graph again for every step, and on a busy machine loses a key pressed meanwhile.
    for (let pressed = 0; pressed < 3 && JSON.stringify(await texts()) === before; pressed++) {
      await page.keyboard.press(key)
      for (let waited = 0; waited < 40 && JSON.stringify(await texts()) === before; waited++) await page.waitForTimeout(200)
    }
    await page.waitForTimeout(1500)
    seen.push(await texts())
  }
  return seen
}
const undone = await steps("Control+z", 4)
const redone = await steps("Control+y", 4)
console.log(JSON.stringify({ drawn, undone, redone, errors }))
await browser.close()
