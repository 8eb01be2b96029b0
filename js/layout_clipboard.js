// Copied boxes, for every layout editor of this browser: they are kept in its storage as a layout's JSON.

import { parse, serialise } from "./layout_value.js"

const KEY = "GLMImage.copiedRegions"

export function keep(regions) {
  localStorage.setItem(KEY, serialise(regions))
}

export function kept() {
  const { regions, error } = parse(localStorage.getItem(KEY))
  return error ? [] : regions
}
