"""ComfyUI-GLM-Image: the planner, the decoder and the glyph encoder of GLM-Image as nodes.

Everything is imported inside `comfy_entrypoint`: importing the package stays instant, and pytest, which imports
this file as well, needs no ComfyUI.
"""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    from .nodes import GlmImageExtension

    return GlmImageExtension()
