"""Weights that stay in their mapped file: a device gets copies, and what leaves it is the file's again.

ComfyUI unloads a model by copying its weights to host memory, where nothing but ending the program makes room for
others. Pages of a mapped file are there already, or are read again, and the system may drop them. Where a device
computes in another dtype of the same size, a weight changes it on its way there, one layer after the other.
"""

from functools import cache

import comfy.float
import torch
from torch import nn

COPIED = "copied_from_file"  # attribute of a parameter


class InFile:
    """A layer with weights in a mapped file: `lying`, by their names. What is patched in their place is not touched."""

    lying: dict[str, torch.Tensor]

    def _apply(self, fn, recurse=True):
        """What every `to` comes to; `fn` moves one tensor."""
        moved = {name: self._moved(name, fn) for name in self.lying}
        moved = {name: weight for name, weight in moved.items() if weight is not None}
        self._parameters.update(dict.fromkeys(moved))  # torch passes over what is None
        try:
            return super()._apply(fn, recurse)
        finally:
            self._parameters.update(moved)

    def _moved(self, name: str, fn) -> nn.Parameter | None:
        """A weight where `fn` moves it; None if that is not between the file and a device."""
        weight = self._parameters.get(name)
        if weight is None:
            return None
        lies = weight.device.type == "cpu" and weight.data_ptr() == self.lying[name].data_ptr()
        asked = "cpu" if weight.is_meta else weight.device  # torch moves nothing out of meta
        target = fn(torch.empty(0, dtype=weight.dtype, device=asked))
        if target.dtype != weight.dtype or not (lies or hasattr(weight, COPIED)):
            return None
        if target.device.type == "cpu":
            return weight if lies else _constant(self.lying[name])
        if not lies:
            return None
        copy = _constant(fn(self.as_given(name, weight)))
        setattr(copy, COPIED, True)
        return copy

    def as_given(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the file as devices get it."""
        return weight


class InOtherDtype(InFile):
    """Whose file has another dtype than devices get: `given`, by the names of the weights that change."""

    given: dict[str, torch.dtype]

    def as_given(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.given.get(name, weight.dtype))

    def forward(self, *args, **kwargs):
        """A layer that waits in host memory changes its weights for each use, since devices may lack the file's dtype.

        ComfyUI's dynamic memory, which gives layers a `_v`, does it by itself.
        """
        own = self._parameters
        late = [n for n, dtype in self.given.items() if own.get(n) is not None and own[n].dtype != dtype]
        if not late or hasattr(self, "_v"):
            return super().forward(*args, **kwargs)
        changed = {name: own[name].to(self.given[name]) for name in late}
        return torch.func.functional_call(self, changed, args, kwargs)

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **_):
        """As ComfyUI calls it with a patched weight, which it would give the dtype of the file."""
        return self._set("weight", weight, inplace_update, seed, return_weight)

    def set_bias(self, weight, inplace_update=False, seed=None, return_weight=False, **_):
        return self._set("bias", weight, inplace_update, seed, return_weight)

    def _set(self, name, weight, inplace_update, seed, return_weight):
        patched = comfy.float.stochastic_rounding(weight, self.given.get(name, self._parameters[name].dtype), seed=seed)
        if return_weight:
            return patched
        if inplace_update and self._parameters[name].dtype == patched.dtype:
            self._parameters[name].data.copy_(patched)
        else:
            setattr(self, name, _constant(patched))
        return None


def stay_in_file(module: nn.Module, lying: dict[str, torch.Tensor], given: dict[str, torch.dtype]) -> None:
    """Let a module's weights stay in their file, by their keys; `given` has those that devices get in another dtype."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lying.items():
        home, _, name = key.rpartition(".")
        layers.setdefault(home, {})[name] = tensor
    for home, tensors in layers.items():
        layer = module.get_submodule(home)
        layer.lying = tensors
        changing = {name: given[f"{home}.{name}"] for name in tensors if f"{home}.{name}" in given}
        if changing:
            layer.given = changing
        for name, dtype in changing.items():
            setattr(layer, f"{name}_comfy_model_dtype", dtype)  # what ComfyUI's dynamic memory gives devices
        layer.__class__ = _joined(InOtherDtype if changing else InFile, type(layer))


def as_given(module: nn.Module, key: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight of a module as its device gets it."""
    home, _, name = key.rpartition(".")
    layer = module.get_submodule(home)
    return layer.as_given(name, weight) if isinstance(layer, InFile) else weight


@cache
def _joined(first: type, kind: type) -> type:
    return type(kind.__name__, (first, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _constant(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
