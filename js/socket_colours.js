// Colours of the pack's own sockets and links; a palette that names one of them wins.

import { app } from "../../scripts/app.js"

const COLOURS = {
  GLM_IMAGE_PLANNER: "#7986cb",
  GLM_IMAGE_GLYPH_ENCODER: "#d4e157",
  GLM_IMAGE_PLAN: "#4db6ac",
  GLM_IMAGE_LAYOUT: "#f06292",
  GLM_IMAGE_DEVICES: "#90a4ae",
}

// Loading a palette writes "" for every type that it does not know.
function withDefault(colours, type, colour) {
  let chosen = colours[type]
  const set = (value) => (chosen = value)
  Object.defineProperty(colours, type, { configurable: true, enumerable: true, get: () => chosen || colour, set })
}

app.registerExtension({
  name: "GLMImage.SocketColours",
  setup() {
    const style = document.createElement("style") // for Nodes 2.0
    style.textContent = `:root{${Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}:${colour}`).join(";")}}`
    document.head.append(style)
    for (const [type, colour] of Object.entries(COLOURS)) {
      withDefault(app.canvas.default_connection_color_byType, type, colour)
      withDefault(app.canvas.constructor.link_type_colors, type, colour)
    }
  },
})
