"""The denoising loop: from noise to latents along the schedule, one Euler step after the other.

Follows `GlmImagePipeline.__call__` of diffusers v0.42.1. What differs: what no step changes is computed before the
loop, the loop is a generator that its caller may leave at any step, and `guidance_scale` 1 runs one pass a step.
Shapes: B images, h w latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..devices.capabilities import check_finite
from ..devices.device import current
from ..geometry import LATENT
from ..models.transformer import Dit
from .approximations import EXACT, Approximations
from .cfg import CfgPasses, guided_velocity
from .scheduler import Schedule, euler_step


@torch.no_grad()  # around each resumption: a generator must not leave it on for its caller
def denoise_steps(
    dit: Dit,
    schedule: Schedule,
    noise: torch.Tensor,
    passes: CfgPasses,
    hold: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
    approximations: Approximations = EXACT,
) -> Iterator[torch.Tensor]:
    """float32 (B, 16, h, w) noise on the decoder's device -> the latents after each step, float32.

    `hold(latents, sigma)` may replace the latents before each step and after the last one.
    """
    dtype, device = passes.conditional.glyphs.dtype, noise.device
    sigmas, latents, caches = schedule.sigmas.tolist(), noise, approximations.caches()
    with current(device):
        size = torch.tensor([[LATENT * side for side in noise.shape[-2:]]], dtype=dtype).to(device)
        modulations = dit.modulations(schedule.timesteps.to(device), size, torch.zeros_like(size), dtype)
    for k, delta in enumerate(schedule.deltas()):
        with current(device):
            if hold:
                latents = hold(latents, sigmas[k])
            guides = approximations.guides(k, schedule.steps)
            now = passes.at(k) if guides else replace(passes.at(k), unconditional=None)
            velocity = guided_velocity(dit, latents.to(dtype), modulations[k], now, caches)
            latents = euler_step(latents, velocity, delta)
            if k + 1 == schedule.steps:
                check_finite(velocity.to(dtype), "decoder")
                latents = hold(latents, sigmas[-1]) if hold else latents
        yield latents
