// The bars above and below the layout editor's page: tools, the selected box's fields, and the status line.

import * as g from "./layout_geometry.js"
import { ALIGNMENTS, DIRECTIONS, PRESETS, ROLES } from "./layout_value.js"

export function make(tag, className, parent, fields = {}) {
  const element = document.createElement(tag)
  if (className) element.className = className
  Object.assign(element, fields)
  parent?.append(element)
  return element
}

export function button(parent, text, title, action) {
  const element = make("button", "", parent, { type: "button", textContent: text, title })
  element.setAttribute("aria-label", title)
  element.addEventListener("click", action)
  return element
}

export class Toolbar {
  constructor(editor, words) {
    this.editor = editor
    this.words = words
    this.buildTools(make("div", "glm-bar", editor.root))
    this.fieldBar = make("div", "glm-bar")
    this.buildFields(this.fieldBar)
    this.status = make("div", "glm-status")
    this.status.setAttribute("role", "status")
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
    const preset = this.choice(bar, w.preset, ["", ...Object.keys(PRESETS)], (name) => {
      if (name) this.editor.usePreset(name)
      preset.value = ""
    })
    preset.options[0].textContent = w.preset
    button(bar, "＋", w.add, () => this.editor.add())
    this.needsBox = [
      button(bar, "❐", w.duplicate, () => this.editor.edit(g.duplicated)),
      button(bar, "✕", w.remove, () => this.editor.edit(g.removed)),
      button(bar, "↑", w.up, () => this.editor.edit(g.reordered, 1)),
      button(bar, "↓", w.down, () => this.editor.edit(g.reordered, -1)),
    ]
    this.undoButton = button(bar, "↶", w.undo, () => this.editor.travel(g.undone))
    this.redoButton = button(bar, "↷", w.redo, () => this.editor.travel(g.redone))
    button(bar, "−", w.out, () => this.editor.pointer.zoom(0.8))
    button(bar, "⤢", w.fit, () => this.editor.pointer.zoom(0))
    button(bar, "+", w.in, () => this.editor.pointer.zoom(1.25))
    const label = make("label", "", bar, { textContent: w.snap })
    this.snapping = make("input", "", null, { type: "checkbox", checked: true })
    label.prepend(this.snapping)
  }

  buildFields(bar) {
    const w = this.words
    const set = (key) => (value) => this.editor.change({ [key]: value })
    this.fields = {
      role: this.choice(bar, w.role, ROLES, set("role")),
      align: this.choice(bar, w.align, ALIGNMENTS, set("align")),
      direction: this.choice(bar, w.direction, DIRECTIONS, set("direction")),
      color: this.field(bar, "color", w.color, "color"),
      style: this.field(bar, "text", w.style, "style"),
      font: this.field(bar, "text", w.font, "font"),
    }
  }

  field(bar, type, title, key) {
    const input = make("input", "", bar, { type, title, placeholder: type === "text" ? title : "" })
    input.setAttribute("aria-label", title)
    input.addEventListener("change", () => this.editor.change({ [key]: input.value }))
    return input
  }

  draw(found) {
    const region = this.editor.regions[this.editor.selected]
    for (const control of this.tools.querySelectorAll("button, select")) control.disabled = Boolean(this.editor.broken)
    for (const control of [...this.needsBox, ...Object.values(this.fields)]) control.disabled = !region
    for (const [key, control] of Object.entries(this.fields)) {
      const value = region?.[key] || (key === "color" ? "#000000" : "")
      if (document.activeElement !== control && control.value !== value) control.value = value
    }
    this.undoButton.disabled = Boolean(this.editor.broken) || !this.editor.log.past.length
    this.redoButton.disabled = Boolean(this.editor.broken) || !this.editor.log.future.length
    this.status.textContent = this.editor.broken ? "" : this.statusLine(found)
    this.status.classList.toggle("glm-bad", found.length > 0)
  }

  // What is wrong; else where the selected box stands in pixels, as the prompt's percentages and other nodes count.
  statusLine(found) {
    if (!this.editor.regions.length) return this.words.empty
    const shown = found.slice(0, 3).map(({ index, why }) => (index < 0 ? why : `${index + 1}: ${why}`))
    if (found.length) return shown.join("; ") + (found.length > 3 ? " …" : "")
    const { width, height } = this.editor.page
    const region = this.editor.regions[this.editor.selected]
    if (!region) return `${this.words.page}: ${width} × ${height} px`
    const [x, y, w, h] = [region.x * width, region.y * height, region.width * width, region.height * height].map(Math.round)
    return `${this.editor.selected + 1}: ${w} × ${h} px @ ${x}, ${y}`
  }
}
