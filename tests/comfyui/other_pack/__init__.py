"""Another pack, for tests of graphs that mix it with ours."""

import torch


class OtherConditioning:
    """A conditioning as text encoders of other models make it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 48})}}

    def make(self, width):
        return ([[torch.zeros(1, 5, width), {"pooled_output": torch.zeros(1, width)}]],)


class WhereParts:
    """Where ComfyUI computes with the four parts of Load GLM-Image."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "look"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = {"planner": "GLM_IMAGE_PLANNER", "model": "MODEL", "glyph_encoder": "GLM_IMAGE_GLYPH_ENCODER"}
        return {"required": {name: (kind,) for name, kind in kinds.items()} | {"vae": ("VAE",)}}

    def look(self, planner, model, glyph_encoder, vae):
        patchers = (planner.patcher, model, glyph_encoder.patcher, vae.patcher)
        return (" ".join(str(patcher.load_device) for patcher in patchers),)


NODE_CLASS_MAPPINGS = {"OtherConditioning": OtherConditioning, "WhereParts": WhereParts}
