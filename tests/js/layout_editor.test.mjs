// The editor alone on a page in Chromium. Needs playwright-core (in node_modules, or its folder in PLAYWRIGHT_CORE)
// and a Chromium (CHROMIUM, default /usr/bin/chromium); says so and skips where they are missing.
// PICTURES=folder keeps screenshots.

import assert from "node:assert/strict"
import { existsSync, mkdirSync, readFileSync } from "node:fs"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { after, before, describe, test } from "node:test"
import { parse, serialise, newRegion } from "../../js/layout_value.js"

const chromiumPath = process.env.CHROMIUM ?? "/usr/bin/chromium"
const playwright = findPlaywright()
const missing = !playwright ? "playwright-core is not installed" : !existsSync(chromiumPath) ? `${chromiumPath} does not exist` : false

function findPlaywright() {
  try {
    return createRequire(import.meta.url)(process.env.PLAYWRIGHT_CORE ?? "playwright-core")
  } catch {
    return null
  }
}

const PAGE = `<!doctype html><meta charset="utf-8"><style>body{margin:0;background:light-dark(#ddd,#111)}
#host{width:520px;height:560px;margin:10px}</style><div id="host"></div><script type="module">
import { LayoutEditor } from "/layout_editor.js"
window.changes = 0
const language = new URLSearchParams(location.search).get("language") ?? "en"
window.editor = new LayoutEditor({ onChange: () => window.changes++, language })
document.querySelector("#host").append(editor.root)
window.addEventListener("keydown", (event) => (window.leaked = event.key))
</script>`

function serve() {
  const types = { js: "text/javascript", css: "text/css" }
  return createServer((request, response) => {
    const name = request.url.slice(1).split("?")[0]
    const type = types[name.split(".").pop()]
    response.setHeader("Content-Type", type ?? "text/html")
    response.end(type ? readFileSync(new URL(`../../js/${name}`, import.meta.url)) : PAGE)
  })
}

describe("the layout editor in a browser", { skip: missing }, () => {
  let browser, server, url

  before(async () => {
    server = serve()
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve))
    url = `http://127.0.0.1:${server.address().port}/`
    browser = await playwright.chromium.launch({ executablePath: chromiumPath, args: ["--no-sandbox", "--disable-gpu"] })
  })

  after(async () => {
    await browser?.close()
    server?.close()
  })

  async function open(options = {}, query = "") {
    const page = await browser.newPage({ viewport: { width: 560, height: 600 }, ...options })
    page.problems = []
    page.on("pageerror", (error) => page.problems.push(error.message))
    page.on("dialog", (dialog) => page.problems.push(`dialog ${dialog.message()}`) && dialog.dismiss())
    await page.goto(url + query)
    await page.waitForFunction(() => window.editor?.pageElement.clientWidth > 0)
    return page
  }

  const regions = async (page) => parse(await page.evaluate(() => editor.getValue())).regions
  const settle = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))
  const picture = async (page, name) => {
    if (!process.env.PICTURES) return
    mkdirSync(process.env.PICTURES, { recursive: true })
    await page.screenshot({ path: `${process.env.PICTURES}/${name}.png` })
  }

  // Drag between two places given in fractions of the page.
  async function drag(page, from, to) {
    const rect = await page.locator(".glm-page").boundingBox()
    const at = ([x, y]) => [rect.x + x * rect.width, rect.y + y * rect.height]
    await page.mouse.move(...at(from))
    await page.mouse.down()
    await page.mouse.move(...at([(from[0] + to[0]) / 2, (from[1] + to[1]) / 2]))
    await page.mouse.move(...at(to))
    await page.mouse.up()
    await settle(page)
  }

  const set = async (page, list) => {
    await page.evaluate((value) => editor.setValue(value), serialise(list))
    await settle(page)
  }
  const near = (a, b, tolerance = 0.01) => assert.ok(Math.abs(a - b) <= tolerance, `${a} is not ${b}`)

  test("two boxes are drawn, typed into and undone", async () => {
    const page = await open()
    await drag(page, [0.1, 0.1], [0.9, 0.3])
    await page.keyboard.type("OPEN 24h")
    await page.keyboard.press("Escape")
    await drag(page, [0.2, 0.6], [0.7, 0.8])
    await page.keyboard.type("营业中")
    await page.keyboard.press("Escape")
    await settle(page)
    const drawn = await regions(page)
    assert.deepEqual(drawn.map((r) => r.text), ["OPEN 24h", "营业中"])
    near(drawn[0].x, 0.1)
    near(drawn[1].width, 0.5)
    await picture(page, "editor_light")
    await page.keyboard.press("Control+z")
    await page.keyboard.press("Control+z")
    assert.deepEqual((await regions(page)).map((r) => r.text), ["OPEN 24h"])
    await page.keyboard.press("Control+Shift+Z")
    await page.keyboard.press("Control+y")
    assert.deepEqual(await regions(page), drawn)
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("boxes move, resize, snap, duplicate, reorder and go by mouse and keyboard", async () => {
    const page = await open()
    await set(page, [newRegion({ x: 0.2, y: 0.2, width: 0.3, height: 0.1 }, { text: "A" })])
    await drag(page, [0.3, 0.25], [0.453, 0.4])
    near((await regions(page))[0].x, 0.35, 1e-6) // snapped: its middle stands on the page's
    await drag(page, [0.65, 0.4], [0.8, 0.4])
    near((await regions(page))[0].width, 0.45)
    await page.keyboard.press("ArrowRight")
    near((await regions(page))[0].x, 0.36, 1e-6)
    await page.keyboard.press("Shift+ArrowDown")
    await page.keyboard.press("Control+d")
    assert.equal((await regions(page)).length, 2)
    await page.keyboard.press("[")
    await page.keyboard.press("x")
    await page.keyboard.type("yz")
    await page.keyboard.press("Escape")
    assert.deepEqual((await regions(page)).map((r) => r.text), ["xyz", "A"])
    await page.keyboard.press("Delete")
    assert.deepEqual((await regions(page)).map((r) => r.text), ["A"])
    assert.equal(await page.evaluate(() => window.leaked), undefined)
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("several boxes are chosen, moved, aligned, spread and removed together", async () => {
    const page = await open()
    const at = (x, y) => newRegion({ x, y, width: 0.2, height: 0.1 }, { text: "A" })
    await set(page, [at(0.1, 0.1), at(0.35, 0.3), at(0.7, 0.8)])
    await page.keyboard.down("Shift")
    await drag(page, [0.02, 0.02], [0.5, 0.45]) // touches two
    await page.keyboard.up("Shift")
    assert.equal(await page.locator(".glm-selected").count(), 2)
    assert.equal(await page.locator(".glm-handle").count(), 0)
    await page.locator(".glm-box").nth(2).click({ modifiers: ["Shift"] })
    await settle(page)
    assert.equal(await page.locator(".glm-selected").count(), 3)
    await page.locator('select[title="Arrange…"]').selectOption("to left")
    assert.deepEqual((await regions(page)).map((r) => r.x), [0.1, 0.1, 0.1])
    await page.locator('select[title="Arrange…"]').selectOption("spread y")
    assert.deepEqual((await regions(page)).map((r) => r.y), [0.1, 0.45, 0.8])
    await page.keyboard.press("ArrowRight")
    assert.deepEqual((await regions(page)).map((r) => r.x), [0.11, 0.11, 0.11])
    await drag(page, [0.2, 0.15], [0.4, 0.15])
    for (const region of await regions(page)) near(region.x, 0.31, 0.02)
    await page.locator('select[title="Role"]').selectOption("sign")
    assert.deepEqual((await regions(page)).map((r) => r.role), ["sign", "sign", "sign"])
    await picture(page, "editor_several")
    await page.keyboard.press("Delete")
    assert.deepEqual(await regions(page), [])
    await page.keyboard.press("Control+z")
    assert.equal((await regions(page)).length, 3)
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("boxes are copied from one editor and pasted into another", async () => {
    const page = await open()
    await set(page, [newRegion({ x: 0.1, y: 0.1, width: 0.3, height: 0.1 }, { text: "A" }), newRegion({ x: 0.5, y: 0.5, width: 0.3, height: 0.1 }, { text: "B" })])
    await page.evaluate(() => {
      editor.root.focus()
      window.other = new editor.constructor({})
      document.querySelector("#host").append(other.root)
    })
    await page.keyboard.press("Control+a")
    await page.keyboard.press("Control+x")
    assert.deepEqual(await regions(page), [])
    await page.keyboard.press("Control+v")
    await page.keyboard.press("Control+v")
    assert.deepEqual((await regions(page)).map((r) => r.x), [0.1, 0.5, 0.13, 0.53])
    await page.evaluate(() => other.root.focus())
    await page.keyboard.press("Control+v")
    const pasted = parse(await page.evaluate(() => other.getValue())).regions
    assert.deepEqual(pasted.map((r) => [r.text, r.x]), [["A", 0.1], ["B", 0.5]])
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("the wheel goes to the graph unless the editor is focused and its page can follow", async () => {
    const page = await open()
    await page.evaluate(() => {
      window.handed = []
      editor.toGraph = (event) => handed.push(event.type)
    })
    await set(page, [newRegion({ x: 0.4, y: 0.4, width: 0.2, height: 0.1 }, { text: "A" })])
    const rect = await page.locator(".glm-page").boundingBox()
    await page.mouse.move(rect.x + rect.width / 2, rect.y + rect.height / 4)
    await page.mouse.wheel(0, -100)
    await page.mouse.down({ button: "middle" })
    await page.mouse.up({ button: "middle" })
    await settle(page)
    assert.deepEqual(await page.evaluate(() => handed), ["wheel", "pointerdown"])
    await page.locator(".glm-box").click()
    await page.mouse.wheel(0, 100) // the whole page is shown: further out is the graph's
    await page.mouse.wheel(0, -100)
    await settle(page)
    assert.deepEqual(await page.evaluate(() => handed), ["wheel", "pointerdown", "wheel"])
    assert.ok((await page.locator(".glm-page").boundingBox()).width > 1.2 * rect.width)
    await page.close()
  })

  test("fields, presets and the page's size reach the value and the picture", async () => {
    const page = await open({ colorScheme: "dark" })
    await page.evaluate(() => {
      document.documentElement.style.colorScheme = "dark"
      editor.setPage(768, 1024)
    })
    await page.locator("select").first().selectOption("menu")
    await settle(page)
    assert.equal((await regions(page)).length, 7)
    await page.locator(".glm-box").first().click()
    await page.locator('select[title="Role"]').selectOption("sign")
    await page.locator('input[placeholder^="style"]').fill("bold red")
    await page.locator('input[placeholder^="style"]').press("Tab")
    const [first] = await regions(page)
    assert.deepEqual([first.role, first.style], ["sign", "bold red"])
    const rect = await page.locator(".glm-page").boundingBox()
    near(rect.width / rect.height, 0.75)
    await picture(page, "editor_dark")
    await page.close()
  })

  test("a wheel over the focused editor zooms its page and a fit brings it back", async () => {
    const page = await open()
    await set(page, [newRegion({ x: 0.4, y: 0.4, width: 0.2, height: 0.1 }, { text: "A" })])
    const before = await page.locator(".glm-page").boundingBox()
    await page.mouse.move(before.x + before.width / 2, before.y + before.height / 2)
    await page.mouse.wheel(0, -400)
    await settle(page)
    near((await page.locator(".glm-page").boundingBox()).width, before.width, 1) // not focused: left to the graph
    await page.locator(".glm-box").click()
    await page.mouse.wheel(0, -400)
    await settle(page)
    near((await page.locator(".glm-page").boundingBox()).width / before.width, Math.E, 0.1)
    await picture(page, "editor_zoomed")
    await page.keyboard.press("0")
    await settle(page)
    near((await page.locator(".glm-page").boundingBox()).width, before.width, 1)
    await page.close()
  })

  test("a finger draws and moves, two fingers zoom", async () => {
    const page = await open({ hasTouch: true })
    const session = await page.context().newCDPSession(page)
    const touch = (type, points) => session.send("Input.dispatchTouchEvent", { type, touchPoints: points.map(([x, y], id) => ({ x, y, id })) })
    const rect = await page.locator(".glm-page").boundingBox()
    const at = (x, y) => [rect.x + x * rect.width, rect.y + y * rect.height]
    await touch("touchStart", [at(0.2, 0.2)])
    await touch("touchMove", [at(0.5, 0.35)])
    await touch("touchMove", [at(0.6, 0.4)])
    await touch("touchEnd", [])
    await settle(page)
    const [drawn] = await regions(page)
    near(drawn.width, 0.4, 0.02)
    await page.keyboard.type("touch")
    await page.keyboard.press("Escape")
    await touch("touchStart", [at(0.4, 0.3)])
    await touch("touchMove", [at(0.4, 0.5)])
    await touch("touchMove", [at(0.4, 0.6)])
    await touch("touchEnd", [])
    await settle(page)
    near((await regions(page))[0].y, drawn.y + 0.3, 0.02)
    await touch("touchStart", [at(0.4, 0.1), at(0.6, 0.1)])
    await touch("touchMove", [at(0.3, 0.1), at(0.7, 0.1)])
    await touch("touchEnd", [])
    await settle(page)
    assert.ok((await page.locator(".glm-page").boundingBox()).width > 1.5 * rect.width)
    assert.equal((await regions(page)).length, 1)
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("hostile strings are shown as text, run nothing and come back whole", async () => {
    const page = await open()
    const texts = ["</script><script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "x".repeat(1e6)]
    const list = texts.map((text, i) => newRegion({ x: 0.1, y: 0.1 + 0.3 * i, width: 0.8, height: 0.2 }, { text, color: "red;--x:url(//e)" }))
    await set(page, list)
    assert.equal(await page.evaluate(() => window.hacked), undefined)
    assert.deepEqual(await regions(page), list)
    assert.ok((await page.locator(".glm-text").nth(2).textContent()).length <= 2100)
    assert.match(await page.locator(".glm-status").textContent(), /3: more than 1000 characters/)
    assert.deepEqual(page.problems, [])
    await page.close()
  })

  test("a layout of another version is kept unchanged until the user starts a new one", async () => {
    const page = await open()
    const foreign = '{"format":"glm-image-layout","version":9,"regions":[{"circle":1}]}'
    await page.evaluate((value) => editor.setValue(value), foreign)
    await settle(page)
    await drag(page, [0.1, 0.1], [0.9, 0.3])
    await page.keyboard.press("Delete")
    assert.equal(await page.evaluate(() => editor.getValue()), foreign)
    assert.match(await page.locator(".glm-broken").textContent(), /version 9; this editor reads 1/)
    await picture(page, "editor_version")
    assert.equal(await page.locator(".glm-bar").first().locator("button:enabled, select:enabled").count(), 0)
    await page.locator(".glm-broken button").click()
    assert.deepEqual(await regions(page), [])
    assert.ok(await page.locator(".glm-bar").first().locator("select").first().isEnabled())
    await page.close()
  })

  test("undoing ends at the layout that was loaded", async () => {
    const page = await open()
    const loaded = [newRegion({ x: 0.2, y: 0.2, width: 0.4, height: 0.1 }, { text: "A" })]
    await set(page, loaded)
    await page.locator(".glm-box").click()
    await page.keyboard.press("Delete")
    assert.deepEqual(await regions(page), [])
    for (let i = 0; i < 3; i++) await page.keyboard.press("Control+z")
    assert.deepEqual(await regions(page), loaded)
    await page.close()
  })

  test("the status line says what is wrong, else where the selected box stands, in the user's language", async () => {
    const page = await open({}, "?language=zh-CN")
    const status = page.locator(".glm-status")
    assert.match(await status.textContent(), /在页面上拖动/)
    await set(page, [newRegion({ x: 0.25, y: 0.5, width: 0.5, height: 0.25 }, { text: "营业" })])
    await page.locator(".glm-box").click()
    await settle(page)
    assert.equal(await status.textContent(), "1: 512 × 256 px @ 256, 512")
    assert.equal(await page.locator('select[title="角色"]').locator("option:checked").textContent(), "文字")
    await page.keyboard.press("Control+d")
    await settle(page)
    assert.match(await status.textContent(), /2: 与文字框 1 重叠 \d+%/)
    await picture(page, "editor_chinese")
    await page.close()
  })

  test("forty boxes follow the pointer within a frame", async (context) => {
    const page = await open()
    const list = Array.from({ length: 40 }, (_, i) =>
      newRegion({ x: 0.02 + 0.19 * (i % 5), y: 0.01 + 0.12 * Math.floor(i / 5), width: 0.17, height: 0.1 }, { text: `Box ${i} text` }),
    )
    await set(page, list)
    const costs = await page.evaluate(async () => {
      const draw = editor.draw.bind(editor)
      const spent = []
      editor.draw = () => {
        const start = performance.now()
        draw()
        editor.pageElement.getBoundingClientRect() // layout is part of the cost
        spent.push(performance.now() - start)
      }
      const box = document.querySelectorAll(".glm-box")[12]
      const rect = box.getBoundingClientRect()
      const send = (type, dx) => {
        const place = { clientX: rect.x + 20 + dx, clientY: rect.y + 10 + dx / 3, pointerId: 1, bubbles: true, button: 0 }
        ;(type === "pointerdown" ? box : editor.frameElement).dispatchEvent(new PointerEvent(type, place))
      }
      editor.frameElement.setPointerCapture = () => {}
      send("pointerdown", 0)
      for (let i = 1; i <= 60; i++) {
        send("pointermove", i)
        await new Promise(requestAnimationFrame)
      }
      send("pointerup", 60)
      return spent.sort((a, b) => a - b)
    })
    const [median, worst] = [costs[Math.floor(costs.length / 2)], costs.at(-1)]
    context.diagnostic(`40 boxes: ${costs.length} frames, median ${median.toFixed(2)} ms, worst ${worst.toFixed(2)} ms`)
    assert.ok(costs.length >= 50)
    assert.ok(median < 16, `median ${median} ms`)
    await picture(page, "editor_forty")
    await page.close()
  })
})
