// ComfyUI's page in Chromium, for the drivers beside this file. Needs playwright-core (its folder in PLAYWRIGHT_CORE, or in
// node_modules) and CHROMIUM (/usr/bin/chromium).

import { createRequire } from "node:module"

const { chromium } = createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE ?? "playwright-core")

// A page of a size; `errors` collects what it throws.
export async function newPage(width, height) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
  })
  const page = await browser.newPage({ viewport: { width, height } })
  page.setDefaultNavigationTimeout(120_000)
  const errors = []
  page.on("pageerror", (error) => errors.push(error.message))
  return { browser, page, errors }
}

// Opens ComfyUI and waits until it knows node types.
export async function visit(page, url, ...types) {
  await page.goto(url, { waitUntil: "domcontentloaded" })
  const ready = (types) => {
    const known = window.LiteGraph?.registered_node_types
    return window.app?.extensionManager && types.every((type) => known?.[type]) && window.app.canvas
  }
  await page.waitForFunction(ready, types, { timeout: 120_000 })
  await page.waitForTimeout(1500)
}

export const set = (page, name, value) =>
  page.evaluate(([name, value]) => app.extensionManager.setting.set(name, value), [name, value])

export const setMode = (page, mode) => set(page, "Comfy.VueNodes.Enabled", mode === "vue")
