"""The denoising loop: from noise to latents along the schedule, one Euler step after the other.

Follows `GlmImagePipeline.__call__` of diffusers v0.42.1. What differs: what no step changes is computed before the
loop, the loop is a generator that its caller may leave at any step, and `guidance_scale` 1 runs one pass a step.
Letters: B images, h w latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from .device import check_finite, current
from .dit import Context, Dit
from .geometry import LATENT
from .scheduler import Schedule, euler_step


@dataclass(frozen=True)
class Passes:
    """What each step runs: the conditional pass and, with guidance, the unconditional one.

    In the first `guided_steps` steps `guided` stands in for `conditional`.
    """

    conditional: Context
    unconditional: Context | None
    guidance_scale: float
    guided: Context | None = None
    guided_steps: int = 0

    def at(self, step: int) -> "Passes":
        return replace(self, conditional=self.guided) if self.guided and step < self.guided_steps else self


@torch.no_grad()  # around each resumption: a generator must not leave it on for its caller
def denoise_steps(
    dit: Dit,
    schedule: Schedule,
    noise: torch.Tensor,
    passes: Passes,
    hold: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """float32 (B, 16, h, w) noise on the decoder's device -> the latents after each step, float32.

    `hold(latents, sigma)` may replace the latents before each step and after the last one.
    """
    dtype, device = passes.conditional.glyphs.dtype, noise.device
    sigmas, latents = schedule.sigmas.tolist(), noise
    with current(device):
        size = torch.tensor([[LATENT * side for side in noise.shape[-2:]]], dtype=dtype).to(device)
        modulations = dit.modulations(schedule.timesteps.to(device), size, torch.zeros_like(size), dtype)
    for k, delta in enumerate(schedule.deltas()):
        with current(device):
            if hold:
                latents = hold(latents, sigmas[k])
            velocity = guided_velocity(dit, latents.to(dtype), modulations[k], passes.at(k))
            latents = euler_step(latents, velocity, delta)
            if k + 1 == schedule.steps:
                check_finite(velocity.to(dtype), "decoder")
                latents = hold(latents, sigmas[-1]) if hold else latents
        yield latents


def guided_velocity(dit: Dit, latents: torch.Tensor, modulations, passes: Passes) -> torch.Tensor:
    """The velocity of one step, float32; unconditional + scale * (conditional - unconditional)."""
    velocity = dit.step(latents, modulations, passes.conditional).float()
    if passes.unconditional is None:
        return velocity
    without = dit.step(latents, modulations, passes.unconditional).float()
    return without + passes.guidance_scale * (velocity - without)
