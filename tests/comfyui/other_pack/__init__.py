"""Another pack, for tests of graphs that mix it with ours: a conditioning as text encoders of other models make it."""

import torch


class OtherConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 48})}}

    def make(self, width):
        return ([[torch.zeros(1, 5, width), {"pooled_output": torch.zeros(1, width)}]],)


NODE_CLASS_MAPPINGS = {"OtherConditioning": OtherConditioning}
