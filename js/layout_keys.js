// Keys of the layout editor.

import * as g from "./layout_geometry.js"

export class Keys {
  constructor(editor) {
    this.editor = editor
    editor.root.addEventListener("keydown", (event) => this.keyDown(event))
  }

  keyDown(event) {
    const queueing = (event.ctrlKey || event.metaKey) && event.key === "Enter"
    if (!queueing) event.stopPropagation()
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape" && this.editor.typing) {
        const index = this.editor.selected
        this.editor.finishTyping()
        this.editor.boxes[index]?.element.focus({ preventScroll: true })
      }
      return
    }
    if (this.editor.broken || queueing) return
    const action = this.shortcut(event)
    if (!action) return
    event.preventDefault()
    action()
  }

  shortcut(event) {
    const key = event.key
    if (event.ctrlKey || event.metaKey) {
      const undo = () => this.editor.travel(g.undone)
      const redo = () => this.editor.travel(g.redone)
      return { z: event.shiftKey ? redo : undo, Z: redo, y: redo, d: () => this.editor.edit(g.duplicated) }[key]
    }
    const always = { "+": () => this.editor.pointer.zoom(1.25), "-": () => this.editor.pointer.zoom(0.8), 0: () => this.editor.pointer.zoom(0) }
    if (this.editor.selected < 0) return always[key]
    const [, dx, dy] = { ArrowLeft: [1, -1, 0], ArrowRight: [1, 1, 0], ArrowUp: [1, 0, -1], ArrowDown: [1, 0, 1] }[key] ?? []
    if (dx !== undefined) return () => this.nudge(dx, dy, event.shiftKey, event.altKey)
    const own = {
      Delete: () => this.editor.edit(g.removed), Backspace: () => this.editor.edit(g.removed), Enter: () => this.editor.type(), F2: () => this.editor.type(),
      Escape: () => this.editor.select(-1), "[": () => this.editor.edit(g.reordered, -1), "]": () => this.editor.edit(g.reordered, 1),
    }
    if (own[key] ?? always[key]) return own[key] ?? always[key]
    // A letter or digit starts typing, as in a spreadsheet.
    if ([...key].length === 1 && /[\p{L}\p{N}]/u.test(key)) return () => this.editor.type(key)
  }

  // Arrows move by a hundredth of the page, with Shift by a twentieth; with Alt they resize.
  nudge(dx, dy, far, resize) {
    const step = far ? 0.05 : 0.01
    this.editor.change(g.applyDrag(resize ? "se" : "move", this.editor.regions[this.editor.selected], dx * step, dy * step))
  }
}
