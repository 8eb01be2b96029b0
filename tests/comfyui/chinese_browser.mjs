// ComfyUI's page in Chinese: node chinese_browser.mjs URL "classic"|"vue" PICTURES WORKFLOW
// Chooses Chinese, loads the workflow and runs it as it is, with an empty prompt, and with a count that comes by a link.
// Prints names, labels and what nodes say as one line of JSON. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and
// CHROMIUM.

import { mkdirSync, readFileSync } from "node:fs"
import { newPage, set, setMode, visit } from "./page.mjs"

const [url, mode, pictures, file] = process.argv.slice(2)
mkdirSync(pictures, { recursive: true })
const { browser, page, errors } = await newPage(1900, 1050)
await visit(page, url, "GLMImageDevices", "SaveImage")
await setMode(page, mode)
await set(page, "Comfy.Locale", "zh")
await page.waitForTimeout(500)
await visit(page, url, "GLMImageDevices", "SaveImage") // as the next visit finds it
await page.evaluate((text) => app.loadGraphData(JSON.parse(text)), readFileSync(file, "utf8"))
await page.waitForTimeout(1500)

const nodes = () =>
  page.evaluate(() =>
    app.graph.nodes.map((node) => ({
      type: node.type,
      title: node.title,
      inputs: (node.inputs ?? []).map((input) => input.localized_name ?? input.label ?? input.name),
      outputs: (node.outputs ?? []).map((output) => output.localized_name ?? output.label ?? output.name),
      widgets: Object.fromEntries(
        (node.widgets ?? []).map((w) => [w.name, [w.label, w.options?.getOptionLabel?.(w.value) ?? String(w.value)]]),
      ),
    })),
  )
// What the page shows of a failure: its messages at the border, or a dialog over the graph.
const shown = () =>
  page.evaluate(() =>
    [...document.querySelectorAll('[role="dialog"], [role="alert"], .p-toast-message, [data-testid*="error"]')].map((e) => e.innerText).join("\n"),
  )
const problems = () => page.evaluate(() => JSON.stringify(app.lastNodeErrors ?? {}))

let failed = null // the last event of a failure, as the page heard it
await page.exposeFunction("heard", (text) => (failed = text))
await page.evaluate(() => app.api.addEventListener("execution_error", ({ detail }) => window.heard(detail.exception_message)))

async function run() {
  const known = Object.keys(await (await page.request.get(`${url}/history`)).json())
  await page.evaluate(() => app.queuePrompt(0, 1).catch(() => {}))
  for (let i = 0; i < 240; i++) {
    await page.waitForTimeout(500)
    const history = await (await page.request.get(`${url}/history`)).json()
    const entry = Object.entries(history).find(([id]) => !known.includes(id))?.[1]
    if (entry?.status) return entry.status.status_str
  }
  return "timeout"
}
async function picture(name) {
  await page.waitForTimeout(1200)
  await page.screenshot({ path: `${pictures}/chinese_${mode}_${name}.png` })
}

const status = await run()
await picture("done")
const seen = await nodes()

await page.evaluate(() => {
  const plan = app.graph.nodes.find((node) => node.type === "GLMImagePlan")
  plan.widgets.find((widget) => widget.name === "prompt").value = "  "
})
await run() // what does not need the plan still runs
await picture("refused")
const refused = await problems()
await page.keyboard.press("Escape")

await page.evaluate(() => {
  const plan = app.graph.nodes.find((node) => node.type === "GLMImagePlan")
  plan.widgets.find((widget) => widget.name === "prompt").value = 'a sign "A"'
  const number = LiteGraph.createNode("PrimitiveInt")
  number.pos = [0, -400]
  app.graph.add(number)
  number.widgets[0].value = -5
  number.connect(0, plan, plan.inputs.findIndex((input) => input.name === "count"))
})
const third = await run()
await picture("error")
const dialog = await shown()
await set(page, "Comfy.Locale", "en")
await page.waitForTimeout(500)
console.log(JSON.stringify({ status, nodes: seen, refused, third, failed, dialog, errors }))
await browser.close()
