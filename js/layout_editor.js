// The text layout editor: boxes drawn on a page, as plain DOM. It listens, asks layout_geometry.js what follows, and
// draws once a frame. It knows nothing of ComfyUI (layout_widget.js does). Texts reach the page as textContent only.

import * as g from "./layout_geometry.js"

const WORDS = {
  zh: {
    preset: "预设…", add: "添加文字框", duplicate: "复制 (Ctrl+D)", remove: "删除 (Del)", up: "上移一层 (])", down: "下移一层 ([)",
    undo: "撤销 (Ctrl+Z)", redo: "重做 (Ctrl+Shift+Z)", out: "缩小 (-)", fit: "适合页面 (0)", in: "放大 (+)", snap: "吸附",
    role: "角色", align: "对齐", direction: "方向", color: "草图颜色", style: "样式词，例如 红色粗体", font: "草图字体",
    fresh: "新建版面", empty: "在页面上拖动以绘制文字框，然后输入文字", page: "页面",
    broken: "此版面无法在这里编辑，已原样保留：",
    options: {
      poster: "海报", menu: "菜单", "book cover": "书封", slide: "幻灯片",
      title: "标题", subtitle: "副标题", body: "正文", caption: "说明", label: "标签", sign: "招牌", price: "价格", text: "文字",
      left: "居左", center: "居中", right: "居右", horizontal: "横排", vertical: "竖排",
    },
  },
  en: {
    preset: "Preset…", add: "Add a box", duplicate: "Duplicate (Ctrl+D)", remove: "Delete (Del)", up: "Bring forward (])", down: "Send back ([)",
    undo: "Undo (Ctrl+Z)", redo: "Redo (Ctrl+Shift+Z)", out: "Zoom out (-)", fit: "Fit the page (0)", in: "Zoom in (+)", snap: "Snap",
    role: "Role", align: "Alignment", direction: "Direction", color: "Colour in the sketch", style: "style words, e.g. bold red", font: "sketch font",
    fresh: "Start a new layout", empty: "Drag on the page to draw a box, then type", page: "Page",
    broken: "This layout is kept as it is, because it cannot be edited here: ",
    options: {},
  },
}
const SNAP_PIXELS = 6
const DRAW_PIXELS = 4 // a shorter drag on the page is a click
const LABEL_LENGTH = 60
const MARGIN = 10 // pixels around the page, so that handles and numbers at its edge are seen

function make(tag, className, parent, fields = {}) {
  const element = document.createElement(tag)
  if (className) element.className = className
  Object.assign(element, fields)
  parent?.append(element)
  return element
}

function loadStyle() {
  const href = new URL("layout_editor.css", import.meta.url).href
  if (document.querySelector(`link[href="${href}"]`)) return
  make("link", "", document.head, { rel: "stylesheet", href })
}

export class LayoutEditor {
  constructor({ onChange = () => {}, language = "en" } = {}) {
    loadStyle()
    const locale = language.slice(0, 2) === "zh" ? "zh" : "en"
    this.words = WORDS[locale]
    this.reasons = g.REASONS[locale]
    this.onChange = onChange
    this.page = { width: 1024, height: 1024 }
    this.view = { zoom: 1, left: 0, top: 0 }
    this.log = g.history([])
    this.regions = this.log.present
    this.selected = -1
    this.broken = null
    this.guides = []
    this.known = new WeakMap()
    this.pointers = new Map()
    this.buildDom()
    this.listen()
    this.render()
  }

  // ---- value ----

  getValue() {
    return this.broken ? this.broken.raw : g.serialise(this.regions)
  }

  setValue(value) {
    if (value === this.getValue()) return
    const { regions, error } = g.parse(value)
    this.finishTyping()
    this.drag = null
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

  // ---- changes ----

  // Show new regions; `commit` also makes them the value and an undo step.
  show(regions, selected = this.selected, commit = true) {
    this.regions = regions
    this.selected = selected
    if (commit) {
      this.log = g.remember(this.log, regions)
      this.onChange()
    }
    this.render()
  }

  change(fields, commit = true) {
    if (this.selected >= 0) this.show(g.changed(this.regions, this.selected, fields), this.selected, commit)
  }

  select(index) {
    if (index !== this.selected) this.finishTyping()
    this.selected = index
    this.render()
  }

  travel(move) {
    this.finishTyping()
    const log = move(this.log)
    if (log === this.log) return
    this.log = log
    this.regions = log.present
    this.selected = Math.min(this.selected, this.regions.length - 1)
    this.onChange()
    this.render()
  }

  add(box = { x: 0.3, y: 0.4, width: 0.4, height: 0.15 }) {
    const { regions, selected } = g.added(this.regions, g.newRegion(box))
    this.show(regions, selected)
    this.type()
  }

  edit(operation, ...rest) {
    if (this.selected < 0) return
    this.finishTyping()
    const { regions, selected } = operation(this.regions, this.selected, ...rest)
    this.show(regions, selected)
    this.boxes[selected]?.element.focus({ preventScroll: true })
  }

  usePreset(name) {
    this.finishTyping()
    this.show(g.PRESETS[name].map((region) => ({ ...region })), -1)
  }

  // ---- typing ----

  type(first) {
    if (this.selected < 0 || this.typing) return
    this.draw()
    const { element } = this.boxes[this.selected]
    const area = make("textarea", "", element, { value: first ?? this.regions[this.selected].text })
    area.setAttribute("aria-label", this.words.add)
    area.style.textAlign = this.regions[this.selected].align
    area.addEventListener("input", () => {
      this.change({ text: area.value }, false)
      this.onChange()
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

  // ---- pointer ----

  listen() {
    const { root, frameElement } = this
    frameElement.addEventListener("pointerdown", (event) => this.pointerDown(event))
    frameElement.addEventListener("pointermove", (event) => this.pointerMove(event))
    for (const name of ["pointerup", "pointercancel"]) frameElement.addEventListener(name, (event) => this.pointerUp(event))
    frameElement.addEventListener("dblclick", (event) => {
      if (event.target.closest(".glm-box")) this.type()
    })
    frameElement.addEventListener("wheel", (event) => this.wheel(event), { passive: false })
    root.addEventListener("keydown", (event) => this.keyDown(event))
    // The graph below must not drag nodes, paste nodes or open its menu for what happens in here.
    for (const name of ["pointerdown", "mousedown", "touchstart", "dblclick", "keyup", "copy", "cut", "paste", "contextmenu"]) {
      root.addEventListener(name, (event) => event.stopPropagation())
    }
    this.resizes = new ResizeObserver(() => this.render())
    this.resizes.observe(frameElement)
  }

  // Pointer position in fractions of the page, whatever the graph's or our own zoom.
  at(event) {
    const rect = this.pageElement.getBoundingClientRect()
    return { x: (event.clientX - rect.left) / rect.width, y: (event.clientY - rect.top) / rect.height, rect }
  }

  pointerDown(event) {
    if (this.broken || event.target.closest("textarea")) return
    this.pointers.set(event.pointerId, event)
    this.frameElement.setPointerCapture(event.pointerId)
    this.finishTyping()
    if (this.pointers.size === 2) return this.startPinch()
    const { x, y } = this.at(event)
    if (event.button === 1 || event.altKey) {
      this.drag = { mode: "pan", event }
      return
    }
    const handle = event.target.dataset.handle
    const box = event.target.closest(".glm-box")
    const index = handle ? this.selected : box ? this.boxes.findIndex((drawn) => drawn.element === box) : -1
    this.drag = { mode: handle ?? (box ? "move" : "draw"), x, y, index, start: this.regions[index], before: this.regions, event }
    this.select(index)
    ;(box ?? this.root).focus({ preventScroll: true })
    event.preventDefault()
  }

  pointerMove(event) {
    if (!this.pointers.has(event.pointerId)) return
    const last = this.pointers.get(event.pointerId)
    this.pointers.set(event.pointerId, event)
    if (this.drag?.mode === "pinch") return this.movePinch()
    if (this.drag?.mode === "pan") return this.pan(event.clientX - last.clientX, event.clientY - last.clientY)
    if (this.drag) this.moveDrag(event)
  }

  moveDrag(event) {
    const { mode, start, index, before, event: down } = this.drag
    const moved = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY)
    if (!this.drag.live && moved < DRAW_PIXELS) return
    this.drag.live = true
    const { x, y, rect } = this.at(event)
    const others = this.regions.filter((_, i) => i !== index)
    const tolerance = this.snapping.checked && !event.ctrlKey ? SNAP_PIXELS : -1
    const drawn = mode === "draw" ? g.newRegion(g.boxBetween(this.drag.x, this.drag.y, x, y)) : null
    const free = drawn ?? g.applyDrag(mode, start, x - this.drag.x, y - this.drag.y)
    const sides = mode === "draw" ? (x < this.drag.x ? "w" : "e") + (y < this.drag.y ? "n" : "s") : mode
    const { box, guides } = g.snap(sides, free, others, tolerance / rect.width, tolerance / rect.height)
    this.guides = guides
    if (mode === "draw") this.show([...before, box], before.length, false)
    else this.show(g.changed(before, index, box), index, false)
  }

  pointerUp(event) {
    this.pointers.delete(event.pointerId)
    const drag = this.drag
    this.drag = null
    this.guides = []
    if (drag?.live && event.type === "pointercancel") return this.show(drag.before, drag.index, false)
    if (drag?.live) {
      this.show(this.regions)
      if (drag.mode === "draw") this.type()
      return
    }
    this.render()
  }

  startPinch() {
    if (this.drag?.before) this.show(this.drag.before, this.drag.index, false)
    this.drag = { mode: "pinch", ...this.pinch() }
  }

  pinch() {
    const [a, b] = [...this.pointers.values()]
    const rect = this.frameElement.getBoundingClientRect()
    const x = ((a.clientX + b.clientX) / 2 - rect.left) / rect.width
    const y = ((a.clientY + b.clientY) / 2 - rect.top) / rect.height
    return { distance: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1, x, y }
  }

  movePinch() {
    if (this.pointers.size < 2) return
    const now = this.pinch()
    this.view = g.zoomedAt(this.view, now.distance / this.drag.distance, now.x, now.y)
    this.view = g.panned(this.view, now.x - this.drag.x, now.y - this.drag.y)
    Object.assign(this.drag, now)
    this.render()
  }

  // A wheel over a focused editor zooms its page; otherwise it belongs to the graph.
  wheel(event) {
    if (!this.root.contains(document.activeElement)) return
    event.preventDefault()
    event.stopPropagation()
    const rect = this.frameElement.getBoundingClientRect()
    const factor = Math.exp(-event.deltaY / 400)
    this.zoom(factor, (event.clientX - rect.left) / rect.width, (event.clientY - rect.top) / rect.height)
  }

  zoom(factor, x = 0.5, y = 0.5) {
    this.view = g.zoomedAt(this.view, factor, x, y)
    this.render()
  }

  pan(dx, dy) {
    const rect = this.frameElement.getBoundingClientRect()
    this.view = g.panned(this.view, dx / rect.width, dy / rect.height)
    this.render()
  }

  // ---- keyboard ----

  keyDown(event) {
    const queueing = (event.ctrlKey || event.metaKey) && event.key === "Enter"
    if (!queueing) event.stopPropagation()
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape" && this.typing) {
        const index = this.selected
        this.finishTyping()
        this.boxes[index]?.element.focus({ preventScroll: true })
      }
      return
    }
    if (this.broken || queueing) return
    const action = this.shortcut(event)
    if (!action) return
    event.preventDefault()
    action()
  }

  shortcut(event) {
    const key = event.key
    if (event.ctrlKey || event.metaKey) {
      const undo = () => this.travel(g.undone)
      const redo = () => this.travel(g.redone)
      return { z: event.shiftKey ? redo : undo, Z: redo, y: redo, d: () => this.edit(g.duplicated) }[key]
    }
    const always = { "+": () => this.zoom(1.25), "-": () => this.zoom(0.8), 0: () => this.zoom(0) }
    if (this.selected < 0) return always[key]
    const [, dx, dy] = { ArrowLeft: [1, -1, 0], ArrowRight: [1, 1, 0], ArrowUp: [1, 0, -1], ArrowDown: [1, 0, 1] }[key] ?? []
    if (dx !== undefined) return () => this.nudge(dx, dy, event.shiftKey, event.altKey)
    const own = {
      Delete: () => this.edit(g.removed), Backspace: () => this.edit(g.removed), Enter: () => this.type(), F2: () => this.type(),
      Escape: () => this.select(-1), "[": () => this.edit(g.reordered, -1), "]": () => this.edit(g.reordered, 1),
    }
    if (own[key] ?? always[key]) return own[key] ?? always[key]
    // A letter or digit starts typing, as in a spreadsheet.
    if ([...key].length === 1 && /[\p{L}\p{N}]/u.test(key)) return () => this.type(key)
  }

  // Arrows move by a hundredth of the page, with Shift by a twentieth; with Alt they resize.
  nudge(dx, dy, far, resize) {
    const step = far ? 0.05 : 0.01
    this.change(g.applyDrag(resize ? "se" : "move", this.regions[this.selected], dx * step, dy * step))
  }

  // ---- drawing ----

  buildDom() {
    this.root = make("div", "glm-layout", null, { tabIndex: -1 })
    this.root.dataset.captureWheel = "true"
    this.buildTools(make("div", "glm-bar", this.root))
    this.frameElement = make("div", "glm-frame", this.root)
    this.pageElement = make("div", "glm-page", this.frameElement)
    this.pageElement.setAttribute("aria-label", this.words.page)
    this.brokenElement = make("div", "glm-broken", this.frameElement, { hidden: true })
    this.brokenText = make("div", "", this.brokenElement)
    this.button(this.brokenElement, this.words.fresh, this.words.fresh, () => {
      this.broken = null
      this.show([], -1)
    })
    this.buildFields(make("div", "glm-bar", this.root))
    this.status = make("div", "glm-status", this.root)
    this.status.setAttribute("role", "status")
    this.boxes = []
    this.drawn = []
  }

  button(parent, text, title, action) {
    const button = make("button", "", parent, { type: "button", textContent: text, title })
    button.setAttribute("aria-label", title)
    button.addEventListener("click", action)
    return button
  }

  choice(parent, title, options, action) {
    const select = make("select", "", parent, { title })
    select.setAttribute("aria-label", title)
    for (const option of options) make("option", "", select, { value: option, textContent: this.words.options[option] ?? option })
    select.addEventListener("change", () => action(select.value))
    return select
  }

  buildTools(bar) {
    const w = this.words
    this.tools = bar
    const preset = this.choice(bar, w.preset, ["", ...Object.keys(g.PRESETS)], (name) => {
      if (name) this.usePreset(name)
      preset.value = ""
    })
    preset.options[0].textContent = w.preset
    this.button(bar, "＋", w.add, () => this.add())
    this.needsBox = [
      this.button(bar, "❐", w.duplicate, () => this.edit(g.duplicated)),
      this.button(bar, "✕", w.remove, () => this.edit(g.removed)),
      this.button(bar, "↑", w.up, () => this.edit(g.reordered, 1)),
      this.button(bar, "↓", w.down, () => this.edit(g.reordered, -1)),
    ]
    this.undoButton = this.button(bar, "↶", w.undo, () => this.travel(g.undone))
    this.redoButton = this.button(bar, "↷", w.redo, () => this.travel(g.redone))
    this.button(bar, "−", w.out, () => this.zoom(0.8))
    this.button(bar, "⤢", w.fit, () => this.zoom(0))
    this.button(bar, "+", w.in, () => this.zoom(1.25))
    const label = make("label", "", bar, { textContent: w.snap })
    this.snapping = make("input", "", null, { type: "checkbox", checked: true })
    label.prepend(this.snapping)
  }

  buildFields(bar) {
    const w = this.words
    const set = (key) => (value) => this.change({ [key]: value })
    this.fields = {
      role: this.choice(bar, w.role, g.ROLES, set("role")),
      align: this.choice(bar, w.align, g.ALIGNMENTS, set("align")),
      direction: this.choice(bar, w.direction, g.DIRECTIONS, set("direction")),
      color: this.field(bar, "color", w.color, "color"),
      style: this.field(bar, "text", w.style, "style"),
      font: this.field(bar, "text", w.font, "font"),
    }
  }

  field(bar, type, title, key) {
    const input = make("input", "", bar, { type, title, placeholder: type === "text" ? title : "" })
    input.setAttribute("aria-label", title)
    input.addEventListener("change", () => this.change({ [key]: input.value }))
    return input
  }

  render() {
    this.frame ??= requestAnimationFrame(() => this.draw())
  }

  draw() {
    cancelAnimationFrame(this.frame)
    this.frame = null
    this.drawPage()
    const found = this.broken ? [] : g.problems(this.regions, this.page.width, this.page.height, this.reasons, this.known)
    const bad = new Map(found.map(({ index, why }) => [index, why]))
    while (this.boxes.length > this.regions.length) this.dropBox()
    this.regions.forEach((region, index) => this.drawBox(region, index, bad.get(index)))
    this.drawGuides()
    this.drawTools(found)
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
    const isSelected = index === this.selected
    if (box.element.classList.contains("glm-selected") !== isSelected) {
      box.element.classList.toggle("glm-selected", isSelected)
      for (const handle of box.element.querySelectorAll(".glm-handle")) handle.remove()
      if (isSelected) this.addHandles(box.element)
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
    const element = make("div", "glm-box", this.pageElement, { tabIndex: 0 })
    element.setAttribute("role", "group")
    const box = { element, text: make("div", "glm-text", element), tag: make("div", "glm-tag", element) }
    element.addEventListener("focus", () => this.select(this.boxes.indexOf(box)))
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
    const size = g.regionSize(region, this.page.width, this.page.height)
    const shown = region.text.slice(0, 2 * g.MAX_TEXT)
    const vertical = region.direction === "vertical"
    Object.assign(box.element.style, {
      left: percent(region.x), top: percent(region.y), width: percent(region.width), height: percent(region.height),
      fontSize: `${(92 * size) / this.page.height}cqh`, textAlign: region.align,
    })
    box.element.classList.toggle("glm-vertical", vertical)
    const lines = vertical ? null : g.wrap(shown, (region.width * this.page.width) / size)
    box.text.textContent = lines ? lines.join("\n") : shown
    box.text.style.color = g.isColor(region.color) ? region.color : ""
    box.tag.textContent = index + 1
    box.element.setAttribute("aria-label", `${index + 1} ${region.role}: ${region.text.slice(0, LABEL_LENGTH)}`)
  }

  drawGuides() {
    for (const guide of this.pageElement.querySelectorAll(".glm-guide")) guide.remove()
    for (const { axis, at } of this.guides) {
      const guide = make("div", "glm-guide", this.pageElement)
      const across = axis === "x"
      Object.assign(guide.style, {
        left: across ? `${100 * at}%` : "0", top: across ? "0" : `${100 * at}%`,
        width: across ? "1px" : "100%", height: across ? "100%" : "1px",
      })
    }
  }

  drawTools(found) {
    const region = this.regions[this.selected]
    for (const control of this.tools.querySelectorAll("button, select")) control.disabled = Boolean(this.broken)
    for (const control of [...this.needsBox, ...Object.values(this.fields)]) control.disabled = !region
    for (const [key, control] of Object.entries(this.fields)) {
      const value = region?.[key] || (key === "color" ? "#000000" : "")
      if (document.activeElement !== control && control.value !== value) control.value = value
    }
    this.undoButton.disabled = Boolean(this.broken) || !this.log.past.length
    this.redoButton.disabled = Boolean(this.broken) || !this.log.future.length
    this.brokenElement.hidden = !this.broken
    if (this.broken) this.brokenText.textContent = this.words.broken + this.broken.error
    this.status.textContent = this.broken ? "" : this.statusLine(found)
    this.status.classList.toggle("glm-bad", found.length > 0)
  }

  // What is wrong; else where the selected box stands in pixels, as the prompt's percentages and other nodes count.
  statusLine(found) {
    if (!this.regions.length) return this.words.empty
    const shown = found.slice(0, 3).map(({ index, why }) => (index < 0 ? why : `${index + 1}: ${why}`))
    if (found.length) return shown.join("; ") + (found.length > 3 ? " …" : "")
    const { width, height } = this.page
    const region = this.regions[this.selected]
    if (!region) return `${this.words.page}: ${width} × ${height} px`
    const [x, y, w, h] = [region.x * width, region.y * height, region.width * width, region.height * height].map(Math.round)
    return `${this.selected + 1}: ${w} × ${h} px @ ${x}, ${y}`
  }
}
