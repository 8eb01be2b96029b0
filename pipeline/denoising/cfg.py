"""Classifier-free guidance: the conditional and the unconditional pass of a step, apart or as one batch."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..devices.remembered import remembered
from ..loading.placement import available
from ..models.transformer import Dit
from ..models.transformer_context import Context, Modulations, join_guidance


@dataclass(frozen=True)
class CfgPasses:
    """What each step runs: the conditional pass and, with guidance, the unconditional one.

    In the first `controlled_steps` steps `controlled`, a layout's, stands in for `conditional`. `batched`: both run
    as one batch.
    """

    conditional: Context
    unconditional: Context | None
    guidance_scale: float
    controlled: Context | None = None
    controlled_steps: int = 0
    batched: bool = False

    def at(self, step: int) -> "CfgPasses":
        return self._controlled if self.controlled and step < self.controlled_steps else self

    @cached_property
    def _controlled(self) -> "CfgPasses":
        return replace(self, conditional=self.controlled, controlled=None)

    @cached_property
    def joined(self) -> Context:
        """Both passes as one batch."""
        return join_guidance(self.conditional, self.unconditional)

    def batches_well(self, device: torch.device, work: int, offloaded: bool) -> bool:
        """Whether one batch is the better choice where the user leaves it open; it needs `work` bytes.

        Not on a CPU, where it was slower, nor where `glm-image device-check` found it slower. Elsewhere where memory
        allows, but not if only the batch needs a mask (for texts of different lengths), which keeps attention from the
        fastest kernels. Layers that are `offloaded` come once for both passes, which outweighs both.
        """
        if self.unconditional is None or device.type == "cpu" or work > available(device):
            return False
        if remembered(device, "batched guidance") is False:
            return offloaded
        return offloaded or self.joined.mask is None or self.conditional.mask is not None


def guided_velocity(
    dit: Dit, latents: torch.Tensor, modulations: Modulations, passes: CfgPasses, caches=(None, None)
) -> torch.Tensor:
    """The velocity of one step, float32; unconditional + scale * (conditional - unconditional)."""
    if passes.batched and passes.unconditional is not None:
        both = dit.step(latents.repeat(2, 1, 1, 1), modulations, passes.joined).float()
        conditional, unconditional = both.chunk(2)
        return unconditional + passes.guidance_scale * (conditional - unconditional)
    conditional = dit.step(latents, modulations, passes.conditional, caches[0]).float()
    if passes.unconditional is None:
        return conditional
    unconditional = dit.step(latents, modulations, passes.unconditional, caches[1]).float()
    return unconditional + passes.guidance_scale * (conditional - unconditional)
