// Sizes that follow: a new plan starts at a size that its model knows, and an empty latent shows its plan's size.

import { app } from "../../scripts/app.js"
import { LOADERS, followed, modelOf, planSize, sizeOwner, source, widgetOf } from "./plan_size.js"

const LATENT = "EmptyGLMImageLatent"
const SIZED = ["GLMImagePlan", "GLMImageResizePlan", "GLMImageTextLayout"]
let usual = {} // [width, height] by model

const nodesOf = (graph, types) => (graph?.nodes ?? []).filter((node) => types.includes(node.type))

function setSize(node, size) {
  for (const [i, name] of ["width", "height"].entries()) {
    const widget = widgetOf(node, name)
    if (widget.value === size[i]) continue
    widget.value = size[i]
    widget.callback?.(size[i])
  }
}

function showPlanSizes(graph) {
  for (const node of nodesOf(graph, [LATENT])) {
    const connected = Boolean(source(node, "plan"))
    for (const name of ["width", "height"]) widgetOf(node, name).disabled = connected
    const size = connected && planSize(node)
    if (size) setSize(node, size)
  }
  graph?.setDirtyCanvas?.(true, true)
}

function useModelSizes(graph) {
  for (const plan of nodesOf(graph, ["GLMImagePlan"])) {
    const [model, owner] = [modelOf(plan), sizeOwner(plan)]
    if (!model || !owner) continue
    setSize(owner, followed(["width", "height"].map((name) => widgetOf(owner, name).value), model, usual))
  }
}

function after(object, method, action) {
  const before = object[method]
  object[method] = function (...args) {
    const result = before?.apply(this, args)
    action(...args)
    return result
  }
}

function readUsual(definitions) {
  usual = definitions.GLMImageLoader?.input?.required?.model?.[1]?.glm_image_sizes ?? usual
}

app.registerExtension({
  name: "GLMImage.Sizes",
  addCustomNodeDefs: readUsual,
  refreshComboInNodes: readUsual,

  nodeCreated(node) {
    // A link is whole only once this handler has returned; loading a graph changes nothing that it says.
    const later = (action) => () => app.configuringGraph || queueMicrotask(() => action(node.graph))
    if (SIZED.includes(node.comfyClass)) {
      for (const name of ["width", "height"]) after(widgetOf(node, name), "callback", later(showPlanSizes))
    }
    if (LOADERS.includes(node.comfyClass)) after(widgetOf(node, "model"), "callback", later(useModelSizes))
    if (node.comfyClass === "GLMImagePlan") after(node, "onConnectionsChange", later(useModelSizes))
    if (node.comfyClass === LATENT || SIZED.includes(node.comfyClass)) {
      after(node, "onConnectionsChange", later(showPlanSizes))
    }
  },

  afterConfigureGraph() {
    showPlanSizes(app.graph)
  },
})
