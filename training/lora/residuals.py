"""Inputs of recomputed layers. One in a few is kept; the others are that one and what the layers between them gave.

What both halves of a layer give is kept already, since the norms behind them need it. Adding it up again costs two
norms a layer; keeping a sum for each layer would take a third of the memory that recomputation leaves.
Shapes: B images, T tokens, H hidden size.
"""

from collections.abc import Callable

import torch
from torch.autograd.graph import saved_tensors_hooks

APART = 4  # layers between two inputs that are kept


class Residuals:
    """Within `saving()`, autograd keeps the input of a layer, given to `enter`, as its number alone.

    `add(layer, x, attended, fed)` gives the next layer's input from what the halves gave. The sums are repeated in the
    order of the forward pass, so they are the same to the bit. For one backward pass, which releases them on its way.
    """

    def __init__(self, add: Callable[..., torch.Tensor]):
        self.add = add
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []  # by each layer so far: attended, fed
        self.inputs: dict[int, torch.Tensor] = {}
        self.entered: torch.Tensor | None = None

    def saving(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._pack, self._unpack)

    def enter(self, x: torch.Tensor) -> None:
        """The input (B, T, H) of the next layer."""
        if not torch.is_grad_enabled():
            return  # nothing is kept
        self.entered = x.detach()
        if len(self.given) % APART == 0:
            self.inputs[len(self.given)] = self.entered

    def leave(self, attended: torch.Tensor, fed: torch.Tensor) -> None:
        """What the halves of the layer gave, each (B, T, H)."""
        if not torch.is_grad_enabled():
            return
        self.given.append((attended.detach(), fed.detach()))
        self.entered = None

    def _pack(self, saved: torch.Tensor):
        x = self.entered
        same = x is not None and saved.data_ptr() == x.data_ptr() and saved.shape == x.shape
        return len(self.given) if same else saved

    def _unpack(self, saved):
        return saved if isinstance(saved, torch.Tensor) else self.input(saved)

    @torch.no_grad()
    def input(self, layer: int) -> torch.Tensor:
        """The input of a layer in the backward pass, where layers come from the last to the first."""
        del self.given[layer:]
        for last in [i for i in self.inputs if i > layer]:
            del self.inputs[last]
        for i in range(max(self.inputs), layer):
            self.inputs[i + 1] = self.add(i, self.inputs[i], *self.given[i])
        return self.inputs[layer]
