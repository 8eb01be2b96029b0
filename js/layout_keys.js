// Keys of the layout editor.

import { duplicatedAll, movedAll, removedAll } from "./layout_arrange.js"
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
      const cut = () => {
        this.editor.copy()
        this.editor.edit(removedAll)
      }
      const all = () => this.editor.choose(this.editor.regions.map((_, i) => i))
      return {
        z: event.shiftKey ? redo : undo, Z: redo, y: redo, a: all, d: () => this.editor.edit(duplicatedAll),
        c: () => this.editor.copy(), x: cut, v: () => this.editor.paste(),
      }[key]
    }
    const always = { "+": () => this.editor.pointer.zoom(1.25), "-": () => this.editor.pointer.zoom(0.8), 0: () => this.editor.pointer.zoom(0) }
    if (this.editor.selected < 0) return always[key]
    const [, dx, dy] = { ArrowLeft: [1, -1, 0], ArrowRight: [1, 1, 0], ArrowUp: [1, 0, -1], ArrowDown: [1, 0, 1] }[key] ?? []
    if (dx !== undefined) return () => this.nudge(dx, dy, event.shiftKey, event.altKey)
    const own = {
      Delete: () => this.editor.edit(removedAll), Backspace: () => this.editor.edit(removedAll), Enter: () => this.editor.type(), F2: () => this.editor.type(),
      Escape: () => this.editor.select(-1), "[": () => this.editor.reorder(-1), "]": () => this.editor.reorder(1),
    }
    if (own[key] ?? always[key]) return own[key] ?? always[key]
    // A letter or digit starts typing, as in a spreadsheet.
    if ([...key].length === 1 && /[\p{L}\p{N}]/u.test(key)) return () => this.editor.type(key)
  }

  // Arrows move by a hundredth of the page, with Shift by a twentieth; with Alt they resize a single box.
  nudge(dx, dy, far, resize) {
    const step = far ? 0.05 : 0.01
    const { regions, chosen, selected } = this.editor
    if (!resize) this.editor.show(movedAll(regions, chosen, dx * step, dy * step))
    else if (chosen.length === 1) this.editor.change(g.applyDrag("se", regions[selected], dx * step, dy * step))
  }
}
