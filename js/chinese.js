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
  return indent + (VALUES[bare] ?? bare)
}

export const translated = (text) => text.split("\n").map(line).join("\n")

export const value = (text) => VALUES[text] ?? text
