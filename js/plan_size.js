// Which size a plan has, followed back through the graph: pure functions over nodes, tested by `node --test tests/js`.

const THROUGH = { GLMImageSavePlan: "plan", GLMImageReplanRegion: "plan", GLMImageLayoutGuidance: "planner", Reroute: "" }
export const LOADERS = ["GLMImageLoader", "GLMImagePlannerLoader"]

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

// The node at the other end of an input; null where nothing is connected.
export function source(node, name) {
  const input = node.inputs?.find((entry) => entry.name === name)
  if (input?.link == null) return null
  const links = node.graph.links
  const link = links.get?.(input.link) ?? links[input.link]
  const from = link && node.graph.getNodeById(link.origin_id)
  return from && from.type in THROUGH ? source(from, THROUGH[from.type]) : from ?? null
}

// The node whose width and height fields say how large `plan`'s plan is; null where only a run tells.
export function sizeOwner(plan) {
  if (!plan) return null
  if (plan.type === "GLMImageResizePlan") return source(plan, "latent") ? null : fieldsOf(plan)
  return plan.type === "GLMImagePlan" ? fieldsOf(plan) : null
}

function fieldsOf(node) {
  const [width, height] = [source(node, "width"), source(node, "height")]
  if (!width && !height) return node
  return width === height && width.type === "GLMImageTextLayout" ? fieldsOf(width) : null
}

// [width, height] of the plan behind a node's input, or null.
export function planSize(node) {
  const owner = sizeOwner(source(node, "plan"))
  const size = owner && ["width", "height"].map((name) => widgetOf(owner, name).value)
  return size?.every(Boolean) ? size : null // 0: the shape of a reference
}

// The name of the model that makes a node's plans, or null.
export function modelOf(plan) {
  const loader = source(plan, "planner")
  return loader && LOADERS.includes(loader.type) ? widgetOf(loader, "model").value : null
}

// What a plan's size becomes with a model: the model's usual size in place of another's; a size of one's own stays.
export function followed(size, model, usual) {
  const isUsual = Object.values(usual).some(([width, height]) => size[0] === width && size[1] === height)
  return isUsual && usual[model] ? usual[model] : size
}
