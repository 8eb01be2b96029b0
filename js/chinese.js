// The page in Chinese beyond what ComfyUI's locales reach: values of combos, what nodes say, and errors.

import { MESSAGES, VALUES } from "./chinese_words.js"

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
const pattern = (english) => new RegExp(`^${escaped(english).replaceAll("\\{\\}", "(.+?)")}$`, "s")
const PATTERNS = Object.entries(MESSAGES).map(([english, chinese]) => [pattern(english), chinese])

// One line of English -> Chinese; a line that is not known stays as it is. Parts are translated where they are known too.
export function line(text) {
  const indent = text.match(/^\s*/)[0]
  const bare = text.slice(indent.length)
  for (const [english, chinese] of PATTERNS) {
    const found = bare.match(english)
    if (found) return indent + chinese.replace(/\{(\d)\}/g, (_, i) => line(found[Number(i) + 1]))
  }
  return indent + bare.split(/(\s{2,})/).map(value).join("") // a row of a table is cells with spaces between them
}

export const translated = (text) => text.split("\n").map(line).join("\n")

export const value = (text) => VALUES[text] ?? text

// What the server answered about a refused graph, with our nodes' sentences in Chinese.
export function translateRefusals(nodeErrors) {
  for (const { class_type: type, errors } of Object.values(nodeErrors ?? {})) {
    if (!type?.includes("GLMImage")) continue
    for (const error of errors) error.details = translated(error.details ?? "")
  }
}

// Names of a node and its sockets, put where the page reads them when it makes one.
export function rename(nodeData, names) {
  Object.assign(nodeData, { display_name: names.display_name, description: names.description })
  for (const section of Object.values(nodeData.input)) {
    for (const [name, entry] of Object.entries(section ?? {})) {
      const tooltip = names.inputs?.[name]?.tooltip
      if (tooltip && Array.isArray(entry)) entry[1] = { ...entry[1], tooltip }
    }
  }
}

export function relabel(node, names) {
  for (const input of node.inputs ?? []) input.localized_name = names.inputs?.[input.name]?.name ?? input.localized_name
  for (const widget of node.widgets ?? []) widget.label = names.inputs?.[widget.name]?.name ?? widget.label
  node.outputs?.forEach((output, i) => (output.localized_name = names.outputs?.[i]?.name ?? output.localized_name))
}
