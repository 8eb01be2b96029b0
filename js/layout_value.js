// A layout's value: regions with the fields and limits of pipeline/layout/regions.py, as versioned JSON, and presets.

export const FORMAT = "glm-image-layout"
export const VERSION = 1
export const ROLES = ["title", "subtitle", "body", "caption", "label", "sign", "price", "text"]
export const ALIGNMENTS = ["left", "center", "right"]
export const DIRECTIONS = ["horizontal", "vertical"]

const NUMBERS = ["x", "y", "width", "height"]
const DEFAULTS = { text: "", role: "text", style: "", align: "center", direction: "horizontal", font: "", color: "" }

export function newRegion(box, fields = {}) {
  return { ...DEFAULTS, ...fields, x: box.x, y: box.y, width: box.width, height: box.height }
}

export function serialise(regions) {
  return JSON.stringify({ format: FORMAT, version: VERSION, regions })
}

// JSON text -> { regions, error }. On an error nothing may be written back: the text stays as it came.
export function parse(text) {
  if (text === undefined || text === null || text === "") return { regions: [], error: null }
  let data
  try {
    data = typeof text === "string" ? JSON.parse(text) : text
  } catch (error) {
    return { regions: [], error: `not valid JSON (${error.message})` }
  }
  if (data === null || typeof data !== "object" || data.format !== FORMAT) {
    return { regions: [], error: `not a "${FORMAT}" object` }
  }
  if (data.version !== VERSION) {
    return { regions: [], error: `version ${JSON.stringify(data.version)}; this editor reads ${VERSION}` }
  }
  if (!Array.isArray(data.regions)) return { regions: [], error: "regions is not a list" }
  for (const [i, region] of data.regions.entries()) {
    const error = fieldError(region)
    if (error) return { regions: [], error: `region ${i + 1}: ${error}` }
  }
  return { regions: data.regions.map((region) => ({ ...DEFAULTS, ...region })), error: null }
}

function fieldError(region) {
  if (region === null || typeof region !== "object" || Array.isArray(region)) return "not an object"
  for (const key of NUMBERS) if (!Number.isFinite(region[key])) return `${key} is not a number`
  if (typeof region.text !== "string") return "text is not a string"
  for (const key of Object.keys(region)) {
    if (NUMBERS.includes(key)) continue
    if (!(key in DEFAULTS)) return `unknown field ${key}`
    if (typeof region[key] !== "string") return `${key} is not a string`
  }
  return null
}

const band = (role, text, y, height, fields = {}) => newRegion({ x: 0.06, y, width: 0.88, height }, { role, text, ...fields })

export const PRESETS = {
  poster: [
    band("title", "BIG NEWS", 0.04, 0.25),
    band("body", "Music, food and friends", 0.4, 0.2),
    band("caption", "Saturday 8 pm", 0.82, 0.13),
  ],
  menu: [
    band("title", "MENU", 0.03, 0.15),
    ...["Soup", "Noodles", "Tea"].flatMap((dish, i) => [
      newRegion({ x: 0.08, y: 0.26 + 0.2 * i, width: 0.5, height: 0.13 }, { role: "label", text: dish, align: "left" }),
      newRegion({ x: 0.66, y: 0.26 + 0.2 * i, width: 0.26, height: 0.13 }, { role: "price", text: `$${4 + 2 * i}`, align: "right" }),
    ]),
  ],
  "book cover": [
    band("title", "THE LONG WAY", 0.1, 0.26),
    band("subtitle", "A novel", 0.4, 0.1),
    band("caption", "Ann Author", 0.86, 0.09),
  ],
  slide: [
    band("title", "Three steps", 0.05, 0.2, { align: "left" }),
    ...["Plan", "Build", "Show"].map((step, i) => band("body", step, 0.34 + 0.2 * i, 0.14, { align: "left" })),
  ],
  label: [
    band("title", "HONEY", 0.22, 0.28),
    band("subtitle", "wild flowers", 0.54, 0.14),
    band("caption", "250 g", 0.8, 0.12),
  ],
}
