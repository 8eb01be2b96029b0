// Uses a running ComfyUI as a person does: node workflows_browser.mjs URL PICTURES "classic"|"vue" FILE...
// Drops each FILE (a workflow, or a picture with one inside) on the page, looks for missing nodes, queues it, waits, looks
// for nodes that lie on each other and takes pictures. "vue" is Nodes 2.0. Prints one line of JSON a file. Needs playwright-core (its folder in PLAYWRIGHT_CORE) and CHROMIUM.

import { mkdirSync, readFileSync } from "node:fs"
import { createRequire } from "node:module"
import { basename, join } from "node:path"

const [url, pictures, mode, ...files] = process.argv.slice(2)
const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE ?? "playwright-core")
const RUN_MS = 600_000
mkdirSync(pictures, { recursive: true })

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"],
})
const page = await browser.newPage({ viewport: { width: 1920, height: 1000 } })
page.setDefaultTimeout(120_000)
const errors = []
const ours = /extensions\/ComfyUI-GLM-Image|GLMImage/
page.on("pageerror", (error) => errors.push(error.message))
page.on("console", (message) => {
  if (message.type() === "error" && (ours.test(message.location().url) || ours.test(message.text()))) errors.push(message.text())
})

const ready = () => {
  const types = window.LiteGraph?.registered_node_types
  return window.app?.extensionManager && types?.GLMImageLoader && types?.SaveImage && window.app.canvas
}
await page.goto(url, { waitUntil: "domcontentloaded", timeout: 120_000 })
await page.waitForFunction(ready, null, { timeout: 120_000 })
await page.waitForTimeout(2000)

await page.evaluate((vue) => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue), mode === "vue")
await page.evaluate(() => app.extensionManager.setting.set("Comfy.Minimap.Visible", false))
await page.evaluate(() => {
  const bars = [...document.querySelectorAll("div")].filter((d) => d.innerText?.trim().startsWith("Introducing Nodes 2.0"))
  ;[...(bars.at(-1)?.parentElement.querySelectorAll("button") ?? [])].at(-1)?.click() // the announcement's cross
})

const get = async (path) => (await page.request.get(url + path)).json()

// What the mouse does when it lets go of a file over the canvas.
async function drop(file) {
  const type = file.endsWith(".png") ? "image/png" : "application/json"
  const bytes = readFileSync(file).toString("base64")
  await page.evaluate(
    ([name, type, bytes]) => {
      app.graph.clear()
      const data = new DataTransfer()
      data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }))
      const canvas = document.querySelector("#graph-canvas")
      const event = { bubbles: true, cancelable: true, dataTransfer: data, clientX: 900, clientY: 500 }
      for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, event))
    },
    [basename(file), type, bytes],
  )
  await page.waitForFunction(() => app.graph.nodes.length > 0, null, { timeout: 120_000 })
  await page.waitForTimeout(1500)
}

const missingNodes = () =>
  page.evaluate(() => app.graph.nodes.map((n) => n.type).filter((type) => !LiteGraph.registered_node_types[type]))
const closeDialogs = () => page.keyboard.press("Escape")
const dialogs = () =>
  page.evaluate(() => [...document.querySelectorAll('[role="dialog"]')].map((d) => d.innerText).filter(Boolean))

async function showAll() {
  await page.evaluate(() => {
    app.canvas.selectItems?.(app.graph.nodes)
    app.canvas.fitViewToSelectionAnimated?.({ duration: 1, zoom: 0.92 })
    app.canvas.deselectAll?.()
  })
  await page.waitForTimeout(700)
}

// Pairs of nodes that lie on each other, in the page's own measure: its canvas's boxes, or with Nodes 2.0 its elements'.
const overlaps = () =>
  page.evaluate((vue) => {
    const box = (node) => {
      if (!vue) return [...node.getBounding()]
      const rect = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect()
      return [rect.x, rect.y, rect.width, rect.height]
    }
    const boxes = app.graph.nodes.map((node) => [`${node.id} ${node.type}`, ...box(node)])
    const meet = ([, ax, ay, aw, ah], [, bx, by, bw, bh]) => ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah
    return boxes.flatMap((a, i) => boxes.slice(0, i).filter((b) => meet(a, b)).map((b) => `${a[0]} on ${b[0]}`))
  }, mode === "vue")

async function finished(before) {
  const deadline = Date.now() + RUN_MS
  while (Date.now() < deadline) {
    const history = await get("/history")
    const id = Object.keys(history).find((key) => !before.has(key))
    if (id && history[id].status?.completed !== undefined) return history[id]
    await page.waitForTimeout(300)
  }
  throw new Error("the run did not end")
}

for (const file of files) {
  errors.length = 0
  const name = basename(file).replace(/\.\w+$/, "")
  await drop(file)
  const shown = await dialogs()
  await closeDialogs()
  await showAll()
  await page.screenshot({ path: join(pictures, `${name} ${mode}.png`) })
  const api = await page.evaluate(async () => (await app.graphToPrompt()).output)
  const result = { file, nodes: await page.evaluate(() => app.graph.nodes.length), missing: await missingNodes(), dialogs: shown, api }
  if (process.env.QUEUE !== "no") {
    const before = new Set(Object.keys(await get("/history")))
    await page.evaluate(() => app.queuePrompt(0, 1))
    const entry = await finished(before)
    await page.waitForTimeout(1500)
    await showAll()
    await page.screenshot({ path: join(pictures, `${name} ${mode} done.png`) })
    result.overlaps = await overlaps()
    result.shown = await page.evaluate(() => app.graph.nodes.filter((n) => n.type === "SaveImage" && n.imgs?.length).length)
    const images = Object.values(entry.outputs).flatMap((output) => output.images ?? [])
    result.status = entry.status.status_str
    result.saved = images.filter((image) => image.type === "output")
    result.messages = entry.status.messages.filter(([kind]) => kind === "execution_error").map(([, data]) => data.exception_message)
  }
  console.log(JSON.stringify({ ...result, errors: [...errors] }))
}
await browser.close()
