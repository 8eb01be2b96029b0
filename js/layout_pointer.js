// Mouse, pen and fingers on the page of the layout editor: drawing, moving and resizing boxes, panning and zooming.

import { around, movedAll, touched } from "./layout_arrange.js"
import * as g from "./layout_geometry.js"
import { newRegion } from "./layout_value.js"

const SNAP_PIXELS = 6
const DRAW_PIXELS = 4 // a shorter drag on the page is a click

export class Pointer {
  constructor(editor) {
    this.editor = editor
    this.pointers = new Map()
    this.marquee = null // what a drag with Shift spans
    const frame = editor.frameElement
    frame.addEventListener("pointerdown", (event) => this.pointerDown(event))
    frame.addEventListener("pointermove", (event) => this.pointerMove(event))
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => this.pointerUp(event))
    frame.addEventListener("dblclick", (event) => {
      if (event.target.closest(".glm-box")) editor.type()
    })
    frame.addEventListener("wheel", (event) => this.wheel(event), { passive: false })
  }

  // Pointer position in fractions of the page, whatever the graph's or our own zoom.
  at(event) {
    const rect = this.editor.pageElement.getBoundingClientRect()
    return { x: (event.clientX - rect.left) / rect.width, y: (event.clientY - rect.top) / rect.height, rect }
  }

  // The middle button moves the page where that is larger than its frame, else the graph, as everywhere on it.
  isForGraph(event) {
    return event.button === 1 && this.editor.view.zoom === 1 && !event.target.closest("textarea")
  }

  pointerDown(event) {
    if (this.editor.broken || event.target.closest("textarea")) return
    if (this.isForGraph(event)) return this.editor.toGraph(event)
    this.pointers.set(event.pointerId, event)
    this.editor.frameElement.setPointerCapture(event.pointerId)
    this.editor.finishTyping()
    if (this.pointers.size === 2) return this.startPinch()
    const { x, y } = this.at(event)
    if (event.button === 1 || event.altKey) {
      this.drag = { mode: "pan", event }
      return
    }
    const handle = event.target.dataset.handle
    const box = event.target.closest(".glm-box")
    const index = handle ? this.editor.selected : box ? this.editor.boxes.findIndex((drawn) => drawn.element === box) : -1
    const more = event.shiftKey // Ctrl is for moving freely
    const mode = handle ?? (box ? "move" : more ? "choose" : "draw")
    const before = this.editor.regions
    this.drag = { mode, x, y, index, more, before, chosen: this.editor.chosen, event }
    if (box && more && !handle) this.editor.toggle(index)
    else if (mode !== "choose" && !this.editor.chosen.includes(index)) this.editor.select(index)
    const chosen = this.editor.chosen
    ;(box ?? this.editor.root).focus({ preventScroll: true })
    this.editor.choose(chosen)
    if (mode === "move" && !chosen.length) this.drag = null
    else if (mode !== "choose" && mode !== "draw") this.drag.start = around(before, chosen)
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
    const { mode, start, before, chosen, event: down } = this.drag
    const moved = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY)
    if (!this.drag.live && moved < DRAW_PIXELS) return
    this.drag.live = true
    const { x, y, rect } = this.at(event)
    if (mode === "choose") {
      this.marquee = g.boxBetween(this.drag.x, this.drag.y, x, y)
      return this.editor.choose([...new Set([...chosen, ...touched(before, this.marquee)])])
    }
    const others = before.filter((_, i) => !this.editor.chosen.includes(i) || mode === "draw")
    const tolerance = this.editor.toolbar.snapping.checked && !event.ctrlKey ? SNAP_PIXELS : -1
    const drawn = mode === "draw" ? newRegion(g.boxBetween(this.drag.x, this.drag.y, x, y)) : null
    const free = drawn ?? g.applyDrag(mode, start, x - this.drag.x, y - this.drag.y)
    const sides = mode === "draw" ? (x < this.drag.x ? "w" : "e") + (y < this.drag.y ? "n" : "s") : mode
    const { box, guides } = g.snap(sides, free, others, tolerance / rect.width, tolerance / rect.height)
    this.editor.guides = guides
    const now = this.editor.chosen
    if (mode === "draw") this.editor.show([...before, box], [before.length], false)
    else if (mode === "move") this.editor.show(movedAll(before, now, box.x - start.x, box.y - start.y), now, false)
    else this.editor.show(g.changed(before, now[0], box), now, false)
  }

  pointerUp(event) {
    this.pointers.delete(event.pointerId)
    const drag = this.drag
    this.drag = this.marquee = null
    this.editor.guides = []
    if (drag?.live && event.type === "pointercancel") return this.editor.show(drag.before, drag.chosen, false)
    if (drag?.live && drag.mode !== "choose") {
      this.editor.show(this.editor.regions)
      if (drag.mode === "draw") this.editor.type()
      return
    }
    if (drag?.mode === "move" && !drag.live && !drag.more) this.editor.select(drag.index) // a click chooses one of several
    this.editor.render()
  }

  startPinch() {
    if (this.drag?.before) this.editor.show(this.drag.before, this.drag.chosen, false)
    this.drag = { mode: "pinch", ...this.pinch() }
  }

  pinch() {
    const [a, b] = [...this.pointers.values()]
    const rect = this.editor.frameElement.getBoundingClientRect()
    const x = ((a.clientX + b.clientX) / 2 - rect.left) / rect.width
    const y = ((a.clientY + b.clientY) / 2 - rect.top) / rect.height
    return { distance: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1, x, y }
  }

  movePinch() {
    if (this.pointers.size < 2) return
    const now = this.pinch()
    this.editor.view = g.zoomedAt(this.editor.view, now.distance / this.drag.distance, now.x, now.y)
    this.editor.view = g.panned(this.editor.view, now.x - this.drag.x, now.y - this.drag.y)
    Object.assign(this.drag, now)
    this.editor.render()
  }

  // A wheel over a focused editor zooms its page; otherwise, and out beyond the whole page, it zooms the graph.
  wheel(event) {
    const beyond = this.editor.view.zoom === 1 && event.deltaY > 0
    if (beyond || !this.editor.root.contains(document.activeElement)) return this.editor.toGraph(event)
    event.preventDefault()
    event.stopPropagation()
    const rect = this.editor.frameElement.getBoundingClientRect()
    const factor = Math.exp(-event.deltaY / 400)
    this.zoom(factor, (event.clientX - rect.left) / rect.width, (event.clientY - rect.top) / rect.height)
  }

  zoom(factor, x = 0.5, y = 0.5) {
    this.editor.view = g.zoomedAt(this.editor.view, factor, x, y)
    this.editor.render()
  }

  pan(dx, dy) {
    const rect = this.editor.frameElement.getBoundingClientRect()
    this.editor.view = g.panned(this.editor.view, dx / rect.width, dy / rect.height)
    this.editor.render()
  }
}
