"""Sockets of this pack's own. Everything else travels on ComfyUI's: MODEL, VAE, CONDITIONING, LATENT, SIGMAS, IMAGE."""

from comfy_api.latest import io

Planner = io.Custom("GLM_IMAGE_PLANNER")
GlyphEncoder = io.Custom("GLM_IMAGE_GLYPH_ENCODER")
Plan = io.Custom("GLM_IMAGE_PLAN")
Devices = io.Custom("GLM_IMAGE_DEVICES")
Layout = io.Custom("GLM_IMAGE_LAYOUT")
