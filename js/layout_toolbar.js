// The bars above and below the layout editor's page: tools, the selected boxes' fields, and the status line.

import { aligned, ALIGNMENTS_OF_BOXES, distributed, duplicatedAll, removedAll } from "./layout_arrange.js"
import * as g from "./layout_geometry.js"
import { ALIGNMENTS, DIRECTIONS, PRESETS, ROLES } from "./layout_value.js"

// Drawn, not written: fonts of many machines have no such characters.
const ICONS = {
  add: "M8 3v10M3 8h10",
  duplicate: "M5.5 5.5h8v8h-8zM3 10.5V3h7.5",
  remove: "M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.7 8.5h5.6l.7-8.5",
  up: "M8 13V3.5M4 7.5l4-4 4 4",
  down: "M8 3v9.5M4 8.5l4 4 4-4",
  undo: "M6.5 3.5L3 7l3.5 3.5M3 7h6a3.5 3.5 0 010 7H7",
  redo: "M9.5 3.5L13 7l-3.5 3.5M13 7H7a3.5 3.5 0 000 7h2",
  out: "M4.5 7h5M7 2.5a4.5 4.5 0 110 9 4.5 4.5 0 010-9zM10.3 10.3l3.2 3.2",
  fit: "M3 6V3h3M10 3h3v3M13 10v3h-3M6 13H3v-3",
  in: "M7 4.5v5M4.5 7h5M7 2.5a4.5 4.5 0 110 9 4.5 4.5 0 010-9zM10.3 10.3l3.2 3.2",
}
const SPREADABLE = 3 // boxes; two have one gap, and nothing to make equal

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

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  svg.setAttribute("viewBox", "0 0 16 16")
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
  path.setAttribute("d", ICONS[name])
  svg.append(path)
  return svg
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

  // A list that acts at once and shows its title again.
  menu(bar, title, options, action) {
    const select = this.choice(bar, title, ["", ...options], (name) => {
      select.value = ""
      if (name) action(name)
    })
    select.options[0].textContent = title
    return select
  }

  tool(bar, name, action) {
    const element = button(bar, "", this.words[name], action)
    element.append(icon(name))
    return element
  }

  buildTools(bar) {
    const w = this.words
    this.tools = bar
    this.menu(bar, w.preset, Object.keys(PRESETS), (name) => this.editor.usePreset(name))
    this.tool(bar, "add", () => this.editor.add())
    this.needsBox = [
      this.tool(bar, "duplicate", () => this.editor.edit(duplicatedAll)),
      this.tool(bar, "remove", () => this.editor.edit(removedAll)),
    ]
    this.needsOne = [
      this.tool(bar, "up", () => this.editor.reorder(1)),
      this.tool(bar, "down", () => this.editor.reorder(-1)),
    ]
    this.arrange = this.menu(bar, w.arrange, [...ALIGNMENTS_OF_BOXES.map((edge) => `to ${edge}`), "spread x", "spread y"], (name) => {
      const [kind, where] = name.split(" ")
      this.editor.edit(kind === "to" ? aligned : distributed, where)
    })
    this.undoButton = this.tool(bar, "undo", () => this.editor.travel(g.undone))
    this.redoButton = this.tool(bar, "redo", () => this.editor.travel(g.redone))
    this.tool(bar, "out", () => this.editor.pointer.zoom(0.8))
    this.tool(bar, "fit", () => this.editor.pointer.zoom(0))
    this.tool(bar, "in", () => this.editor.pointer.zoom(1.25))
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
    const { chosen, broken, regions, log } = this.editor
    const region = regions[this.editor.selected]
    for (const control of this.tools.querySelectorAll("button, select")) control.disabled = Boolean(broken)
    for (const control of [...this.needsBox, this.arrange, ...Object.values(this.fields)]) control.disabled = !region
    for (const control of this.needsOne) control.disabled = chosen.length !== 1
    for (const option of this.arrange.options) {
      option.disabled = option.value.startsWith("spread") && chosen.length < SPREADABLE
    }
    for (const [key, control] of Object.entries(this.fields)) {
      const value = region?.[key] || (key === "color" ? "#000000" : "")
      if (document.activeElement !== control && control.value !== value) control.value = value
    }
    this.undoButton.disabled = Boolean(broken) || !log.past.length
    this.redoButton.disabled = Boolean(broken) || !log.future.length
    this.status.textContent = this.status.title = broken ? "" : this.statusLine(found)
    this.status.classList.toggle("glm-bad", found.length > 0)
  }

  // What is wrong; else where the selected box stands in pixels, as the prompt's percentages and other nodes count.
  statusLine(found) {
    const { regions, chosen, selected } = this.editor
    if (!regions.length) return this.words.empty
    const shown = found.slice(0, 3).map(({ index, why }) => (index < 0 ? why : `${index + 1}: ${why}`))
    if (found.length) return shown.join("; ") + (found.length > 3 ? " …" : "")
    const { width, height } = this.editor.page
    const region = regions[selected]
    if (!region) return `${this.words.page}: ${width} × ${height} px. ${this.words.hint}`
    if (chosen.length > 1) return this.words.several(chosen.length)
    const [x, y, w, h] = [region.x * width, region.y * height, region.width * width, region.height * height].map(Math.round)
    return `${selected + 1}: ${w} × ${h} px @ ${x}, ${y}`
  }
}
