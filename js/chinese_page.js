// Shows Chinese words where the page's language is Chinese: in combos of the pack's nodes, and in errors.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { translated, value } from "./chinese.js"

export const isChinese = () => (app.extensionManager?.setting?.get("Comfy.Locale") ?? "").startsWith("zh")

// What the page is about to show; the console and the server's log keep the English original.
function translateError({ detail }) {
  if (detail?.node_type?.includes("GLMImage") || /GLM-Image/.test(detail?.exception_message ?? "")) {
    detail.exception_message = translated(detail.exception_message.trim())
  }
}

app.registerExtension({
  name: "GLMImage.Chinese",
  init() {
    if (isChinese()) api.addEventListener("execution_error", translateError) // before the page listens
  },
  nodeCreated(node) {
    if (!node.comfyClass?.includes("GLMImage") || !isChinese()) return
    for (const widget of node.widgets ?? []) {
      if (widget.type === "combo" && widget.options) widget.options.getOptionLabel = (text) => value(String(text ?? ""))
    }
  },
})
