"""LoRA on linear layers: what adapters change in a layer, and changing it.

An adapter of rank r gives a layer of weights W (o, i) two matrices, up (o, r) and down (r, i), and makes it W + scale *
up @ down (Hu and others 2021, arXiv 2106.09685). DoRA gives every row of that sum a length of its own (Liu and others
2024, arXiv 2402.09353), as PEFT computes it. Several adapters each change W itself, so that their order is of no
account, and a strength is how far one goes from W to what it makes of it.
Layers of whole numbers get new weights in place, so that planning is as fast as before. Layers of 8 and 4 bits keep
their codes, whose steps would swallow most of a small change, and compute the change beside them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .weight_forms import CodedLinear

CHUNK = 1 << 24  # numbers of a weight that are widened to float32 at once, 64 MiB


@dataclass(frozen=True)
class LayerLora:
    """What one adapter changes in one layer: `up` (o, r), `down` (r, i) and how much their product counts.

    `magnitude` (o,): the rows' lengths of DoRA. `added_bias` (o,) goes onto the layer's bias, `bias` (o,) in its place.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float = 1.0
    magnitude: torch.Tensor | None = None
    added_bias: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def to(self, device: torch.device) -> "LayerLora":
        """In float32 there."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = {name: value.to(device, torch.float32) for name, value in tensors.items()}
        return LayerLora(**{**vars(self), **moved})

    def lengthened(self, part: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows of W, float32 -> DoRA's form of them, and the factor (rows, 1) that gave them their lengths."""
        new = part + self.scale * (self.up[rows] @ self.down)
        lengths = torch.linalg.vector_norm(new, dim=1, keepdim=True).clamp_min(torch.finfo(new.dtype).tiny)
        factor = self.magnitude[rows, None] / lengths
        return new * factor, factor


Loras = Sequence[tuple[LayerLora, float]]  # each with its strength


@torch.no_grad()
def apply_loras(module: nn.Module, changes: Mapping[str, Loras]) -> nn.Module:
    """Change linear layers by their names, in place; a fused planner is so no more."""
    for name, loras in changes.items():
        layer = module.get_submodule(name)
        bias = changed_bias(layer.bias, loras)
        if isinstance(layer, CodedLinear):
            for attribute, value in beside_codes(layer, loras).items():
                setattr(layer, attribute, constant(value, value.device))
        else:
            change_weight(layer.weight, loras)
        if bias is not None:
            layer.bias = constant(bias, layer.weight.device)
    for part in module.modules():
        if getattr(part, "fused", None) is not None:
            part.fused = None
    return module


def change_weight(weight: torch.Tensor, loras: Loras) -> torch.Tensor:
    """Change a matrix (o, i) of any float dtype in place, computing in float32, and return it."""
    loras = _with_matrices(loras, weight.device)
    for rows in _chunks(*weight.shape):
        part = weight[rows].float()
        new = part.clone()
        for lora, strength in loras:
            if lora.magnitude is None:
                new += strength * lora.scale * (lora.up[rows] @ lora.down)
            else:
                new += strength * (lora.lengthened(part, rows)[0] - part)
        weight[rows] = new.to(weight.dtype)
    return weight


def beside_codes(layer: CodedLinear, loras: Loras) -> dict[str, torch.Tensor]:
    """The attributes by which a layer of codes computes LoRA beside them: `lora_up` (o, R), `lora_down` (R, i) and, for
    DoRA, `lora_gain` (o,), on the layer's device and in the dtype of its scales. R is the sum of all ranks.
    """
    ups, gain, moved = [], None, _with_matrices(loras, layer.weight.device)
    if not moved:
        return {}
    for lora, strength in moved:
        if lora.magnitude is None:
            ups.append(strength * lora.scale * lora.up)
            continue
        factor = torch.cat([lora.lengthened(layer.numbers(rows), rows)[1] for rows in _chunks(*layer.shape)])
        gain = (1.0 if gain is None else gain) + strength * (factor - 1)
        ups.append(strength * lora.scale * factor * lora.up)
    found = {"lora_up": torch.cat(ups, dim=1), "lora_down": torch.cat([lora.down for lora, _ in moved])}
    if gain is not None:
        found["lora_gain"] = gain.view(-1)
    return {name: value.to(layer.weight_scale.dtype) for name, value in found.items()}


def changed_bias(bias: torch.Tensor | None, loras: Loras) -> torch.Tensor | None:
    """A layer's bias (o,), or None, with what adapters add to it or put in its place; None if they do neither."""
    changing = [each for each in loras if each[0].added_bias is not None or each[0].bias is not None]
    if not changing:
        return None
    out = len(changing[0][0].up)
    old = torch.zeros(out) if bias is None else bias.float()
    new = old.clone()
    for lora, strength in changing:
        lora = lora.to(old.device)
        if lora.added_bias is not None:
            new += strength * lora.scale * lora.added_bias
        if lora.bias is not None:
            new += strength * (lora.bias - old)
    return new.to(changing[0][0].up.dtype if bias is None else bias.dtype)


def constant(tensor: torch.Tensor, device: torch.device) -> nn.Parameter:
    """As a module takes it, on a device."""
    return nn.Parameter(tensor.detach().to(device), requires_grad=False)


def _with_matrices(loras: Loras, device: torch.device) -> list[tuple[LayerLora, float]]:
    """Those that change more than a bias, on a device."""
    return [(lora.to(device), strength) for lora, strength in loras if len(lora.down)]


def _chunks(out: int, width: int) -> Iterator[slice]:
    """Rows of a matrix, so many at a time that `CHUNK` numbers are not exceeded."""
    step = max(1, CHUNK // width)
    return (slice(start, min(start + step, out)) for start in range(0, out, step))
