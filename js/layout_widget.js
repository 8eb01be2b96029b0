// Puts the layout editor on the *GLM-Image Text Layout* node. The widget's value is the editor's versioned JSON.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { LayoutEditor } from "./layout_editor.js"

const TYPE = "GLM_IMAGE_LAYOUT_EDITOR"
const NODE = "GLMImageTextLayout"
const HEIGHT = 420
const TEXT_HEIGHT = 70

// The page has the size that the node's own width and height widgets say.
function followSize(node, editor) {
  const value = (name) => Number(node.widgets?.find((widget) => widget.name === name)?.value)
  const update = () => editor.setPage(value("width"), value("height"))
  for (const widget of node.widgets ?? []) {
    if (widget.name !== "width" && widget.name !== "height") continue
    const before = widget.callback
    widget.callback = function (...args) {
      const result = before?.apply(this, args)
      update()
      return result
    }
  }
  update()
}

const WHEEL_AND_BUTTON = { wheel: WheelEvent, pointerdown: PointerEvent }

// With Nodes 2.0 the graph hears of events inside a node by itself; the other canvas lies below the page's elements.
function toGraph(event) {
  if (LiteGraph.vueNodesMode) return
  event.preventDefault()
  event.stopPropagation()
  app.canvas.canvas.dispatchEvent(new WHEEL_AND_BUTTON[event.type](event.type, event))
}

// One finished change is one step of the page's own undoing.
function step() {
  app.canvas.emitBeforeChange()
  app.canvas.emitAfterChange()
}

// The editor takes the room that a node has; texts beside it stay as high as they are.
function keepLow(widget) {
  if (widget?.options && widget.element?.tagName === "TEXTAREA") widget.options.getMaxHeight = () => TEXT_HEIGHT
}

function addEditor(node, name) {
  const editor = new LayoutEditor({
    language: app.extensionManager?.setting?.get("Comfy.Locale") ?? "en",
    onChange: (finished) => {
      node.graph?.setDirtyCanvas(true, true)
      widget.callback?.(widget.value)
      if (finished) step()
    },
    toGraph,
  })
  const widget = node.addDOMWidget(name, TYPE, editor.root, {
    getValue: () => editor.getValue(),
    setValue: (value) => editor.setValue(value),
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  })
  widget.layoutEditor = editor
  const removed = widget.onRemove
  widget.onRemove = function () {
    editor.destroy()
    removed?.call(this)
  }
  return { widget, minWidth: 380, minHeight: HEIGHT }
}

const editorOf = (node) => node.widgets?.find((widget) => widget.layoutEditor)?.layoutEditor

app.registerExtension({
  name: "GLMImage.TextLayout",
  getCustomWidgets: () => ({ [TYPE]: addEditor }),

  nodeCreated(node) {
    if (node.comfyClass !== NODE || !editorOf(node)) return
    followSize(node, editorOf(node))
    node.widgets.forEach(keepLow)
    if (node.size[0] < 480) node.setSize([480, Math.max(node.size[1], node.computeSize()[1])])
    const executed = node.onExecuted
    node.onExecuted = function (output) {
      executed?.call(this, output)
      const image = output?.layout_background?.[0]
      if (image) editorOf(this).setBackground(api.apiURL(`/view?${new URLSearchParams(image)}`))
    }
  },

  loadedGraphNode(node) {
    if (node.comfyClass === NODE && editorOf(node)) followSize(node, editorOf(node))
  },
})
