// The text layout editor: boxes drawn on a page, as plain DOM. It keeps the regions, shows them once a frame, and leaves
// pointer, keys and bars to files of their own. It knows nothing of ComfyUI (layout_widget.js does). Texts reach the page
// as textContent only.

import { changedAll, pasted } from "./layout_arrange.js"
import { keep, kept } from "./layout_clipboard.js"
import * as g from "./layout_geometry.js"
import { Keys } from "./layout_keys.js"
import { Pointer } from "./layout_pointer.js"
import { isColor, MAX_TEXT, problems, REASONS, regionSize, wrap } from "./layout_text.js"
import { button, make, Toolbar } from "./layout_toolbar.js"
import { newRegion, parse, PRESETS, serialise } from "./layout_value.js"
import { WORDS } from "./layout_words.js"

const LABEL_LENGTH = 60
const MARGIN = 10 // pixels around the page, so that handles and numbers at its edge are seen

function loadStyle() {
  const href = new URL("layout_editor.css", import.meta.url).href
  if (document.querySelector(`link[href="${href}"]`)) return
  make("link", "", document.head, { rel: "stylesheet", href })
}

// ComfyUI's page leaves keys to whoever says that it is edited in; without that its own undoing would run as well.
function asField(element) {
  return Object.defineProperties(element, { isContentEditable: { value: true }, type: { value: "textarea" } })
}

// `onChange(step)` hears of every new value; `step` tells a finished one from typing. `toGraph(event)` takes the wheel and
// the middle button where they are none of the editor's.
export class LayoutEditor {
  constructor({ onChange = () => {}, toGraph = () => {}, language = "en" } = {}) {
    loadStyle()
    const locale = language.slice(0, 2) === "zh" ? "zh" : "en"
    this.words = WORDS[locale]
    this.reasons = REASONS[locale]
    this.onChange = onChange
    this.toGraph = toGraph
    this.page = { width: 1024, height: 1024 }
    this.view = { zoom: 1, left: 0, top: 0 }
    this.log = g.history([])
    this.regions = this.log.present
    this.chosen = [] // indexes of the selected boxes, the latest last
    this.broken = null
    this.guides = []
    this.known = new WeakMap()
    this.buildDom()
    this.listen()
    this.render()
  }

  getValue() {
    return this.broken ? this.broken.raw : serialise(this.regions)
  }

  setValue(value) {
    if (value === this.getValue()) return
    const { regions, error } = parse(value)
    this.finishTyping()
    this.pointer.drag = null
    this.broken = error ? { raw: value, error } : null
    this.regions = regions
    // What a workflow file brings is where undoing ends; a value that replaces work of the user can be undone.
    if (!error) this.log = this.log.past.length ? g.remember(this.log, regions) : g.history(regions)
    this.select(-1)
  }

  setPage(width, height) {
    if (!(width > 0 && height > 0) || (width === this.page.width && height === this.page.height)) return
    this.page = { width, height }
    this.view = { zoom: 1, left: 0, top: 0 }
    this.drawn = [] // font sizes depend on the page, and what fits
    this.known = new WeakMap()
    this.render()
  }

  setBackground(url) {
    this.pageElement.style.backgroundImage = url ? `url(${JSON.stringify(url)})` : ""
    this.pageElement.classList.toggle("glm-pictured", Boolean(url))
  }

  destroy() {
    this.resizes.disconnect()
    cancelAnimationFrame(this.frame)
  }

  // The box that the fields show and that takes typing.
  get selected() {
    return this.chosen.at(-1) ?? -1
  }

  // Show new regions; `commit` also makes them the value and an undo step.
  show(regions, chosen = this.chosen, commit = true) {
    this.regions = regions
    this.chosen = chosen
    if (commit && regions !== this.log.present) {
      this.log = g.remember(this.log, regions)
      this.onChange(true)
    }
    this.render()
  }

  change(fields, commit = true) {
    if (this.chosen.length) this.show(changedAll(this.regions, this.chosen, fields), this.chosen, commit)
  }

  select(index) {
    this.choose(index < 0 ? [] : [index])
  }

  choose(chosen) {
    if ((chosen.at(-1) ?? -1) !== this.selected) this.finishTyping()
    this.chosen = chosen
    this.render()
  }

  // Add a box to the selection, or take it out.
  toggle(index) {
    this.choose(this.chosen.includes(index) ? this.chosen.filter((i) => i !== index) : [...this.chosen, index])
  }

  travel(move) {
    this.finishTyping()
    const log = move(this.log)
    if (log === this.log) return
    this.log = log
    this.regions = log.present
    const left = this.chosen.filter((i) => i < this.regions.length)
    this.chosen = left.length || !this.chosen.length || !this.regions.length ? left : [this.regions.length - 1]
    this.onChange(true)
    this.render()
  }

  add(box = { x: 0.3, y: 0.4, width: 0.4, height: 0.15 }) {
    const { regions, selected } = g.added(this.regions, newRegion(box))
    this.show(regions, [selected])
    this.type()
  }

  // An operation on the chosen boxes gives the new list, or also which of it to choose.
  edit(operation, ...rest) {
    if (!this.chosen.length) return
    this.finishTyping()
    const result = operation(this.regions, this.chosen, ...rest)
    const { regions, chosen } = Array.isArray(result) ? { regions: result, chosen: this.chosen } : result
    this.show(regions, chosen)
    this.focusChosen()
  }

  // The keyboard goes to the latest chosen box, and the others stay chosen.
  focusChosen() {
    this.draw()
    const chosen = this.chosen
    const box = this.boxes[this.selected]
    ;(box?.element ?? this.root).focus({ preventScroll: true })
    this.choose(chosen)
  }

  reorder(step) {
    if (this.chosen.length !== 1) return
    this.edit((regions, [index]) => {
      const { regions: list, selected } = g.reordered(regions, index, step)
      return { regions: list, chosen: [selected] }
    })
  }

  copy() {
    if (this.chosen.length) keep(this.chosen.map((i) => this.regions[i]))
  }

  paste() {
    const copies = kept()
    if (!copies.length || this.broken) return
    this.finishTyping()
    const { regions, chosen } = pasted(this.regions, copies)
    this.show(regions, chosen)
    this.focusChosen()
  }

  usePreset(name) {
    this.finishTyping()
    this.show(PRESETS[name].map((region) => ({ ...region })), [])
  }

  type(first) {
    if (this.chosen.length !== 1 || this.typing) return
    this.draw()
    const { element } = this.boxes[this.selected]
    const area = make("textarea", "", element, { value: first ?? this.regions[this.selected].text })
    area.setAttribute("aria-label", this.words.add)
    area.style.textAlign = this.regions[this.selected].align
    area.addEventListener("input", () => {
      this.change({ text: area.value }, false)
      this.onChange(false)
    })
    area.addEventListener("blur", () => this.finishTyping())
    this.typing = area
    if (first !== undefined) this.change({ text: first }, false)
    area.focus({ preventScroll: true })
    area.setSelectionRange(area.value.length, area.value.length)
  }

  finishTyping() {
    if (!this.typing) return
    const area = this.typing
    this.typing = null
    area.remove()
    this.show(this.regions)
  }

  listen() {
    this.pointer = new Pointer(this)
    this.keys = new Keys(this)
    // The graph below must not drag nodes, paste nodes or open its menu for what happens in here.
    for (const name of ["pointerdown", "mousedown", "touchstart", "dblclick", "keyup", "copy", "cut", "paste", "contextmenu"]) {
      this.root.addEventListener(name, (event) => this.pointer.isForGraph(event) || event.stopPropagation())
    }
    this.resizes = new ResizeObserver(() => this.render())
    this.resizes.observe(this.frameElement)
  }

  buildDom() {
    this.root = asField(make("div", "glm-layout", null, { tabIndex: -1 }))
    this.root.dataset.captureWheel = "true"
    this.toolbar = new Toolbar(this, this.words)
    this.frameElement = make("div", "glm-frame", this.root)
    this.pageElement = make("div", "glm-page", this.frameElement)
    this.pageElement.setAttribute("aria-label", this.words.page)
    this.brokenElement = make("div", "glm-broken", this.frameElement, { hidden: true })
    this.brokenText = make("div", "", this.brokenElement)
    button(this.brokenElement, this.words.fresh, this.words.fresh, () => {
      this.broken = null
      this.show([], [])
    })
    this.root.append(this.toolbar.fieldBar, this.toolbar.status)
    this.boxes = []
    this.drawn = []
  }

  render() {
    this.frame ??= requestAnimationFrame(() => this.draw())
  }

  draw() {
    cancelAnimationFrame(this.frame)
    this.frame = null
    this.drawPage()
    const found = this.broken ? [] : problems(this.regions, this.page.width, this.page.height, this.reasons, this.known)
    const bad = new Map(found.map(({ index, why }) => [index, why]))
    while (this.boxes.length > this.regions.length) this.dropBox()
    this.regions.forEach((region, index) => this.drawBox(region, index, bad.get(index)))
    this.drawGuides()
    this.brokenElement.hidden = !this.broken
    if (this.broken) this.brokenText.textContent = this.words.broken + this.broken.error
    this.toolbar.draw(found)
  }

  drawPage() {
    const [width, height] = [this.frameElement.clientWidth, this.frameElement.clientHeight]
    const size = g.fitted(Math.max(0, width - 2 * MARGIN), Math.max(0, height - 2 * MARGIN), this.page.width, this.page.height)
    const { zoom, left, top } = this.view
    Object.assign(this.pageElement.style, {
      width: `${size.width * zoom}px`,
      height: `${size.height * zoom}px`,
      left: `${left * width + ((width - size.width) / 2) * zoom}px`,
      top: `${top * height + ((height - size.height) / 2) * zoom}px`,
    })
  }

  // A box is touched only when something about it changed: dragging one of forty redraws one.
  drawBox(region, index, why) {
    const box = (this.boxes[index] ??= this.newBox())
    box.element.classList.toggle("glm-selected", this.chosen.includes(index))
    const hasHandles = this.chosen.length === 1 && this.selected === index
    if (Boolean(box.element.querySelector(".glm-handle")) !== hasHandles) {
      for (const handle of box.element.querySelectorAll(".glm-handle")) handle.remove()
      if (hasHandles) this.addHandles(box.element)
    }
    if (why !== box.why) {
      box.why = why
      if (why) box.element.dataset.problem = why
      else delete box.element.dataset.problem
    }
    if (this.drawn[index] === region && box.index === index) return
    this.drawn[index] = region
    box.index = index
    this.fillBox(box, region, index)
  }

  newBox() {
    const element = asField(make("div", "glm-box", this.pageElement, { tabIndex: 0 }))
    element.setAttribute("role", "group")
    const box = { element, text: make("div", "glm-text", element), tag: make("div", "glm-tag", element) }
    element.addEventListener("focus", () => this.pointer.drag || this.select(this.boxes.indexOf(box)))
    return box
  }

  // The keyboard stays with the editor when the focused box goes.
  dropBox() {
    const { element } = this.boxes.pop()
    const focused = element.contains(document.activeElement)
    element.remove()
    this.drawn.length = this.boxes.length
    if (focused) this.root.focus({ preventScroll: true })
  }

  addHandles(element) {
    for (const name of g.HANDLES) {
      const handle = make("div", "glm-handle", element)
      handle.dataset.handle = name
      handle.style.left = name.includes("w") ? "0%" : name.includes("e") ? "100%" : "50%"
      handle.style.top = name.includes("n") ? "0%" : name.includes("s") ? "100%" : "50%"
      handle.style.cursor = `${name}-resize`
    }
  }

  fillBox(box, region, index) {
    const percent = (value) => `${100 * value}%`
    const size = regionSize(region, this.page.width, this.page.height)
    const shown = region.text.slice(0, 2 * MAX_TEXT)
    const vertical = region.direction === "vertical"
    Object.assign(box.element.style, {
      left: percent(region.x), top: percent(region.y), width: percent(region.width), height: percent(region.height),
      fontSize: `${(92 * size) / this.page.height}cqh`, textAlign: region.align,
    })
    box.element.classList.toggle("glm-vertical", vertical)
    const lines = vertical ? null : wrap(shown, (region.width * this.page.width) / size)
    box.text.textContent = lines ? lines.join("\n") : shown
    box.text.style.color = isColor(region.color) ? region.color : ""
    box.tag.textContent = index + 1
    box.element.setAttribute("aria-label", `${index + 1} ${region.role}: ${region.text.slice(0, LABEL_LENGTH)}`)
  }

  drawGuides() {
    for (const guide of this.pageElement.querySelectorAll(".glm-guide, .glm-marquee")) guide.remove()
    if (this.pointer.marquee) {
      const { x, y, width, height } = this.pointer.marquee
      const place = [["left", x], ["top", y], ["width", width], ["height", height]]
      const frame = make("div", "glm-marquee", this.pageElement)
      Object.assign(frame.style, Object.fromEntries(place.map(([side, value]) => [side, `${100 * value}%`])))
    }
    for (const { axis, at } of this.guides) {
      const guide = make("div", "glm-guide", this.pageElement)
      const across = axis === "x"
      Object.assign(guide.style, {
        left: across ? `${100 * at}%` : "0", top: across ? "0" : `${100 * at}%`,
        width: across ? "1px" : "100%", height: across ? "100%" : "1px",
      })
    }
  }
}
