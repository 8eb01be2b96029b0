"""LoRA beside codes of 8 and 4 bits, whichever node brings it.

ComfyUI adds patches to weights, and codes are no numbers to add to. So a patcher of ours takes the patches of such
layers out and gives the layers what computes the same beside their codes: as attributes, which ComfyUI puts there and
takes back with the model.
"""

from functools import cache

import torch
from comfy.weight_adapter import LoRAAdapter

from ...pipeline.errors import InputError
from ...pipeline.models.lora import LayerLora, beside_codes, changed_bias, constant
from ...pipeline.models.weight_forms import CodedLinear

ATTRIBUTES = ("lora_up", "lora_down", "lora_gain", "bias")


class BesideCodes:
    """A patcher that keeps what LoRAs change in layers of codes: `changes`, by their names, each with its strength."""

    changes: dict[str, tuple[tuple[LayerLora, float], ...]] = {}

    def clone(self, *args, **kwargs):
        clone = super().clone(*args, **kwargs)
        clone.changes = self.changes
        return clone

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        coded = {key: layer_of(self.model, key) for key in patches}
        coded = {key: name for key, name in coded.items() if name is not None}
        added = {key: lora_of(self.model, key, patches[key], strength_model) for key in coded}
        if strength_patch != 0:
            for key, lora in added.items():
                changes = (*self.changes.get(coded[key], ()), (lora, strength_patch))
                self.changes = self.changes | {coded[key]: changes}
            self._give(set(coded.values()))
        others = {key: patch for key, patch in patches.items() if key not in coded}
        return [*coded, *super().add_patches(others, strength_patch, strength_model)]

    def add_hook_patches(self, hook, patches, *args, **kwargs):
        if name := next((name for key in patches if (name := layer_of(self.model, key))), None):
            raise InputError(f"a hook changes {name}, whose weights have 8 or 4 bits; load whole weights for hooks")
        return super().add_hook_patches(hook, patches, *args, **kwargs)

    def _give(self, names: set[str]) -> None:
        """Set the attributes of layers by all that changes them, and count their bytes."""
        size, before = self.model_size(), self._bytes_beside()
        for name in names:
            layer = self.model.get_submodule(name)
            found = beside_codes(layer, self.changes[name])
            bias = changed_bias(self.object_patches_backup.get(f"{name}.bias", layer.bias), self.changes[name])
            found |= {} if bias is None else {"bias": bias}
            for attribute, value in found.items():
                self.add_object_patch(f"{name}.{attribute}", constant(value, self.offload_device))
        self.size = size + self._bytes_beside() - before

    def _bytes_beside(self) -> int:
        given = (f"{name}.{attribute}" for name in self.changes for attribute in ATTRIBUTES[:-1])
        return sum(self.object_patches[key].nbytes for key in given if key in self.object_patches)


@cache
def with_codes(kind: type) -> type:
    """A class of ComfyUI's patchers, taught."""
    return type(kind.__name__, (BesideCodes, kind), {"__module__": kind.__module__})


def layer_of(model, key) -> str | None:
    """The name of the layer of codes that a patch's key is about, else None."""
    name, _, attribute = (key if isinstance(key, str) else key[0]).rpartition(".")
    if attribute not in ("weight", "bias"):
        return None
    try:
        return name if isinstance(model.get_submodule(name), CodedLinear) else None
    except AttributeError:
        return None


def lora_of(model, key, patch, strength_model: float) -> LayerLora:
    """What a patch changes in a layer of codes; raises for what cannot stand beside codes."""
    name = layer_of(model, key)
    out, width = model.get_submodule(name).shape
    if not isinstance(key, str) or strength_model != 1:
        raise InputError(_refusal(name, "a merge, or a part of its weight"))
    if key.endswith(".bias"):
        return LayerLora(torch.zeros(out, 0), torch.zeros(0, width), added_bias=_added(name, patch, out))
    if not isinstance(patch, LoRAAdapter):
        kind = getattr(patch, "name", None) or (patch[0] if len(patch) > 1 else "a merge")
        raise InputError(_refusal(name, kind))
    up, down, alpha, mid, magnitude, reshape = patch.weights
    if mid is not None or reshape is not None:
        raise InputError(_refusal(name, "a LoRA of convolutions"))
    up, down = up.flatten(1), down.flatten(1)
    if up.shape != (out, len(down)) or down.shape[1] != width:
        raise InputError(f"the adapter does not fit {name} of shape {(out, width)}; was it made for another model?")
    if magnitude is not None and (not isinstance(patch, DoraAdapter) or magnitude.numel() != out):
        raise InputError(_refusal(name, "DoRA that only GLM-Image LoRA reads for rows"))
    rows = None if magnitude is None else magnitude.reshape(-1)
    return LayerLora(up, down, 1.0 if alpha is None else alpha / len(down), rows)


def _added(name: str, patch, out: int) -> torch.Tensor:
    """What a patch adds to a bias."""
    if not isinstance(patch, tuple) or patch[0] != "diff" or patch[1][0].shape != (out,):
        raise InputError(_refusal(name, "a patch of its bias that is no sum"))
    return patch[1][0]


def _refusal(name: str, kind: str) -> str:
    return (
        f"the adapter changes {name} by {kind}, and layers of 8 or 4 bits take LoRA and sums of biases only; load "
        "whole weights for it"
    )


class DoraAdapter(LoRAAdapter):
    """A low-rank change whose result gets the adapter's own norm, an output (o, 1) or an input (1, i) at a time."""

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        up, down, alpha, _, magnitude, _ = self.weights
        place = {"device": weight.device, "dtype": intermediate_dtype}
        up, down, magnitude = up.to(**place), down.to(**place), magnitude.to(**place)
        old = weight.to(intermediate_dtype)
        new = old + function((1.0 if alpha is None else alpha / down.shape[0]) * (up @ down))
        norm = torch.linalg.vector_norm(new, dim=1 if magnitude.shape[0] == new.shape[0] else 0, keepdim=True)
        new = new * (magnitude / norm.clamp_min(torch.finfo(new.dtype).tiny))
        weight += (strength * (new - old)).to(weight.dtype)
        return weight
