"""8-bit weights for the planner, which trade exactness for half the memory, and half of what one token must read.

Each row of a matrix is divided by its largest number / 127 and rounded; inputs and results keep their dtype. Only the
language model's layers and its head are stored so: embeddings, norms and the vision tokenizer are small or sensitive.
"""

import re

import torch
from torch import nn

from ..devices import kernels

STEPS = 127  # of an int8, on either side of zero
QUANTISED = re.compile(r"(model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+|lm_head)\.weight")


class Int8Linear(nn.Module):
    """A linear layer of int8 `weight` (out, in) and `scale` (out,) in the dtype that it computes in."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, dtype = linear.weight.detach().float(), linear.weight.dtype
        scale = (weight.abs().amax(dim=1) / STEPS).to(dtype).clamp_(min=torch.finfo(dtype).tiny)
        rounded = (weight / scale.float()[:, None]).round_().clamp_(-STEPS, STEPS)
        self.weight, self.scale, self.bias = _constant(rounded.to(torch.int8)), _constant(scale), linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return kernels.int8_linear(x, self.weight, self.scale, self.bias)


def quantise(planner: nn.Module) -> nn.Module:
    """Replace the matrices of the language model by their 8-bit forms, one after the other, in place."""
    names = [name.removesuffix(".weight") for name, _ in planner.named_parameters() if QUANTISED.fullmatch(name)]
    for name in names:
        home, _, own = name.rpartition(".")
        parent = planner.get_submodule(home)
        setattr(parent, own, Int8Linear(getattr(parent, own)))
    for layer in planner.model.language_model.layers:
        layer.self_attn.fused = None
    return planner


def itemsize(key: str, dtype: torch.dtype) -> int:
    """Bytes of each number under a planner's key, whose other numbers are stored in `dtype`."""
    return 1 if QUANTISED.fullmatch(key) else dtype.itemsize


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
