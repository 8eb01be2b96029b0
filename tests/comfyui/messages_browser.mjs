// What nodes say on ComfyUI's page: node messages_browser.mjs URL "classic"|"vue" PICTURES MODEL
// Runs GLM-Image Devices and a sampler that misses, looks at what both say, saves the workflow, loads it again and looks
// again. Prints one line of JSON. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and CHROMIUM.

import { mkdirSync } from "node:fs"
import { newPage, setMode, visit } from "./page.mjs"

const [url, mode, pictures, prompt] = process.argv.slice(2)
mkdirSync(pictures, { recursive: true })
const { browser, page, errors } = await newPage(1500, 1000)
await visit(page, url, "GLMImageDevices", "SaveImage")
await setMode(page, mode)
await page.evaluate((prompt) => {
  app.graph.clear()
  app.loadApiJson(JSON.parse(prompt), "messages")
  app.graph.arrange?.(60)
}, prompt)
await page.waitForTimeout(1000)

const said = () =>
  page.evaluate(() =>
    Object.fromEntries(
      app.graph.nodes.map((n) => [n.type, n.widgets?.find((w) => w.name === "glm_image_message")?.value]).filter(([, text]) => text),
    ),
  )
const show = async (name) => {
  await page.evaluate(() => {
    app.canvas.selectItems?.(app.graph.nodes)
    app.canvas.fitViewToSelectionAnimated?.({ duration: 1, zoom: 0.92 })
  })
  await page.waitForTimeout(800)
  await page.screenshot({ path: `${pictures}/messages_${mode}_${name}.png` })
}

async function run() {
  const known = Object.keys(await (await page.request.get(`${url}/history`)).json())
  await page.evaluate(() => app.queuePrompt(0, 1))
  for (let i = 0; i < 480; i++) {
    await page.waitForTimeout(500)
    const history = await (await page.request.get(`${url}/history`)).json()
    const entry = Object.entries(history).find(([id]) => !known.includes(id))?.[1]
    if (entry?.status) return entry.status.status_str
  }
  return "timeout"
}

const status = await run()
await page.waitForTimeout(1500)
const after = await said()
const toasts = await page.evaluate(() => [...document.querySelectorAll(".p-toast-message")].map((t) => t.innerText))
const fields = await page.evaluate(() => [...document.querySelectorAll("textarea")].filter((t) => t.value.includes(" px: fits")).map((t) => t.readOnly || t.disabled))
const sent = await page.evaluate(async () => JSON.stringify((await app.graphToPrompt()).output))
await show("after")
const saved = await page.evaluate(() => JSON.stringify(app.graph.serialize()))
await visit(page, url, "GLMImageDevices", "SaveImage")
await page.evaluate((saved) => app.loadGraphData(JSON.parse(saved)), saved)
await page.waitForTimeout(1500)
const reloaded = await said()
const values = await page.evaluate((saved) => {
  const strip = (graph) => graph.nodes.map((n) => JSON.stringify([n.type, n.widgets_values ?? []])).sort().join()
  return strip(JSON.parse(saved)) === strip(app.graph.serialize())
}, saved)
await show("reloaded")
await page.evaluate(() => {
  const sampler = app.graph.nodes.find((n) => n.type === "KSampler")
  sampler.widgets.find((w) => w.name === "sampler_name").value = "euler"
})
const second = await run()
await page.waitForTimeout(1000)
const mended = await said()
console.log(JSON.stringify({ status, second, after, toasts, fields, sent, reloaded, values, mended, errors }))
await browser.close()
