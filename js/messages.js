// What nodes have to say stays at them: in a read-only field that is kept in the node's properties, and so in the saved
// workflow. The pack's nodes send their texts as output; a warning about a node of ComfyUI comes as an event.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { ComfyWidgets } from "../../scripts/widgets.js"
import { translated } from "./chinese.js"
import { isChinese } from "./chinese_page.js"

const NAME = "glm_image_message"
const EVENT = "glm_image.message"
const SECONDS = 15 // that a warning is seen wherever the user is looking
const LINE = 44 // characters in a line of a node of usual width
// They always say something, and have their field from the start: Nodes 2.0 draws the widgets that a node begins with.
const TALKERS = new Set(
  ["Devices", "LoRA", "PlannerLoRA", "Conditioning", "Remote", "RemotePlan", "Plan", "PlanFromImage", "Size"].map(
    (name) => `GLMImage${name}`,
  ),
)
TALKERS.add("EmptyGLMImageLatent")

const widgetOf = (node) => node.widgets?.find((widget) => widget.name === NAME)

// The node of an id as the server spells it: one number, or one a level of subgraphs with colons between them.
function nodeAt(id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

function addField(node) {
  const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app)
  widget.label = isChinese() ? "消息" : "message"
  widget.serialize = false // neither in the workflow's values, which keep their places,
  widget.options.serialize = false // nor in the prompt
  widget.options.read_only = true
  const field = widget.inputEl ?? widget.element
  if (field) field.readOnly = true
  return widget
}

function say(node, english) {
  const text = isChinese() ? translated(english) : english
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / LINE)), 0)
  const widget = widgetOf(node) ?? addField(node)
  widget.value = text
  widget.options.getMinHeight = () => Math.min(30 + 18 * lines, 260)
  node.properties[NAME] = text
  const [width, height] = node.size
  node.setSize([width, Math.max(height, node.computeSize()[1])])
  node.graph?.setDirtyCanvas(true, true)
}

function unsay(node) {
  const widget = widgetOf(node)
  delete node.properties[NAME]
  if (!widget) return
  const height = node.size[1] - node.computeSize()[1]
  if (node.removeWidget) node.removeWidget(widget)
  else {
    widget.onRemove?.()
    node.widgets.splice(node.widgets.indexOf(widget), 1)
  }
  node.setSize([node.size[0], node.computeSize()[1] + Math.max(height, 0)])
  node.graph?.setDirtyCanvas(true, true)
}

// Warnings at nodes that say nothing by themselves: a new run of such a node starts without the last one's.
const warned = new Set()

function forget(event) {
  const id = event.detail?.node ?? event.detail
  if (!warned.delete(String(id))) return
  const node = nodeAt(id)
  if (node) unsay(node)
}

function hear({ detail: { node: id, text, warning } }) {
  const node = nodeAt(id)
  if (node) say(node, text)
  if (!warning) return
  warned.add(String(id))
  app.extensionManager?.toast?.add({ severity: "warn", summary: node?.title ?? "GLM-Image", detail: text, life: SECONDS * 1000 })
}

app.registerExtension({
  name: "GlmImage.Messages",
  setup() {
    api.addEventListener(EVENT, hear)
    api.addEventListener("executing", forget)
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.includes("GLMImage")) return
    const executed = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments)
      if (Array.isArray(output?.text)) say(this, output.text.join("\n"))
    }
  },
  nodeCreated(node) {
    if (TALKERS.has(node.comfyClass)) addField(node).value = ""
    const configured = node.onConfigure
    node.onConfigure = function (data) {
      configured?.apply(this, arguments)
      const text = this.properties?.[NAME]
      if (typeof text !== "string" || !text) return
      if (!node.comfyClass?.includes("GLMImage")) warned.add(String(this.id))
      say(this, text)
    }
  },
})
