// Shows Chinese words where the page's language is Chinese: in combos of the pack's nodes, and in errors. Names of nodes
// come by ComfyUI's locales; pages up to 1.32.9 lose every pack's when they load their own Chinese, so they are set here.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { relabel, rename, translateRefusals, translated, value } from "./chinese.js"

export const isChinese = () => (app.extensionManager?.setting?.get("Comfy.Locale") ?? "").startsWith("zh")

// What the page is about to show; the console and the server's log keep the English original. The page hears of errors
// before any extension can, so they are changed on their way to it.
function translateErrors() {
  const dispatch = api.dispatchCustomEvent
  api.dispatchCustomEvent = function (type, detail) {
    if (type === "execution_error" && isChinese()) translateError(detail)
    return dispatch.apply(this, arguments)
  }
}

function translateError(detail) {
  if (detail?.node_type?.includes("GLMImage") || /GLM-Image/.test(detail?.exception_message ?? "")) {
    detail.exception_message = translated(detail.exception_message.trim())
  }
}

// A graph is refused by an error, or in part beside an answer.
function translateAnswers() {
  const queue = api.queuePrompt
  api.queuePrompt = async function () {
    try {
      const answer = await queue.apply(this, arguments)
      if (isChinese()) translateRefusals(answer?.node_errors)
      return answer
    } catch (error) {
      if (isChinese()) translateRefusals(error?.response?.node_errors)
      throw error
    }
  }
}

let words // of every pack, by language
const lost = new Map() // node types whose names the page has lost -> their names

async function namesOf(type) {
  words ??= api.fetchApi("/i18n").then((answer) => answer.json())
  return (await words).zh?.nodeDefs?.[type]
}

app.registerExtension({
  name: "GLMImage.Chinese",
  init() {
    translateErrors()
    translateAnswers()
  },
  async beforeRegisterNodeDef(_, nodeData) {
    if (!nodeData.name.includes("GLMImage") || !isChinese()) return
    const names = await namesOf(nodeData.name)
    if (!names || nodeData.display_name === names.display_name) return
    rename(nodeData, names)
    lost.set(nodeData.name, names)
  },
  nodeCreated(node) {
    if (!node.comfyClass?.includes("GLMImage") || !isChinese()) return
    if (lost.has(node.comfyClass)) relabel(node, lost.get(node.comfyClass))
    for (const widget of node.widgets ?? []) {
      const field = widget.inputEl ?? widget.element
      if (field?.placeholder && widget.label) field.placeholder = widget.label
      if (widget.type === "combo" && widget.options) widget.options.getOptionLabel = (text) => value(String(text ?? ""))
    }
  },
})
