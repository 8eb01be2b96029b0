"""The denoising loop: from noise to latents along the schedule, one Euler step after the other.

Follows `GlmImagePipeline.__call__` of diffusers v0.42.1. What differs: what no step changes is computed before the
loop, the loop is a generator that its caller may leave at any step, and `guidance_scale` 1 runs one pass a step.
Letters: B images, h w latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..devices.capabilities import check_finite
from ..devices.device import current
from ..errors import InputError
from ..geometry import LATENT
from ..loading.placement import available
from ..models.transformer import Context, Dit, Modulations, StepCache, join_guidance
from .scheduler import Schedule, euler_step

BATCHING = ("auto", "batched", "sequential")


@dataclass(frozen=True)
class Passes:
    """What each step runs: the conditional pass and, with guidance, the unconditional one.

    In the first `guided_steps` steps `guided` stands in for `conditional`. `batched`: both run as one batch.
    """

    conditional: Context
    unconditional: Context | None
    guidance_scale: float
    guided: Context | None = None
    guided_steps: int = 0
    batched: bool = False

    def at(self, step: int) -> "Passes":
        return self._guided if self.guided and step < self.guided_steps else self

    @cached_property
    def _guided(self) -> "Passes":
        return replace(self, conditional=self.guided, guided=None)

    @cached_property
    def joined(self) -> Context:
        """Both passes as one batch."""
        return join_guidance(self.conditional, self.unconditional)

    def batches_well(self, device: torch.device, work: int, streamed: bool) -> bool:
        """Whether one batch is the better choice where the user leaves it open; it needs `work` bytes.

        Not on a CPU, where it was slower. Elsewhere where memory allows, but not if only the batch needs a mask (for
        texts of different lengths), which keeps attention from the fastest kernels. Layers that are `streamed` come
        once for both passes, which outweighs that.
        """
        if self.unconditional is None or device.type == "cpu" or work > available(device):
            return False
        return streamed or self.joined.mask is None or self.conditional.mask is not None


@dataclass(frozen=True)
class Shortcuts:
    """What trades exactness for speed; nothing does unless asked for.

    `guidance_interval`: shares of the steps, from 0 to 1, between which guidance is computed; other steps run the
    conditional pass alone. `step_cache`: the threshold of each pass's `StepCache`, such as 0.1.
    """

    guidance_interval: tuple[float, float] | None = None
    step_cache: float | None = None

    def check(self) -> None:
        """Raise `InputError` for values that mean nothing."""
        if self.guidance_interval is not None:
            first, last = self.guidance_interval
            if not 0 <= first <= last <= 1:
                raise InputError(
                    f"guidance interval {first} to {last} is not accepted; use two shares of the steps, from 0 to 1"
                )
        if self.step_cache is not None and not 0 < self.step_cache < 1:
            raise InputError(f"step cache {self.step_cache} is not accepted; use a number between 0 and 1, such as 0.1")

    def caches(self) -> tuple[StepCache | None, StepCache | None]:
        """Of the conditional and of the unconditional pass."""
        return (None, None) if self.step_cache is None else (StepCache(self.step_cache), StepCache(self.step_cache))

    def guides(self, step: int, steps: int) -> bool:
        """Whether guidance is computed in this step."""
        if self.guidance_interval is None:
            return True
        first, last = self.guidance_interval
        return round(first * steps) <= step < round(last * steps)


EXACT = Shortcuts()


def check_options(
    guidance_interval: tuple[float, float] | None = None,
    step_cache: float | None = None,
    guidance_batching: str = "auto",
    **_others,
) -> Shortcuts:
    """The shortcuts among the options of `GlmImage.denoise_steps`; raises `InputError` for what means nothing."""
    if guidance_batching not in BATCHING:
        raise InputError(f"guidance batching {guidance_batching!r} is not known; use {', '.join(BATCHING)}")
    if guidance_batching == "batched" and step_cache is not None:
        raise InputError("a step cache follows each pass of guidance alone; use guidance batching auto or sequential")
    shortcuts = Shortcuts(guidance_interval, step_cache)
    shortcuts.check()
    return shortcuts


@torch.no_grad()  # around each resumption: a generator must not leave it on for its caller
def denoise_steps(
    dit: Dit,
    schedule: Schedule,
    noise: torch.Tensor,
    passes: Passes,
    hold: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
    shortcuts: Shortcuts = EXACT,
) -> Iterator[torch.Tensor]:
    """float32 (B, 16, h, w) noise on the decoder's device -> the latents after each step, float32.

    `hold(latents, sigma)` may replace the latents before each step and after the last one.
    """
    dtype, device = passes.conditional.glyphs.dtype, noise.device
    sigmas, latents, caches = schedule.sigmas.tolist(), noise, shortcuts.caches()
    with current(device):
        size = torch.tensor([[LATENT * side for side in noise.shape[-2:]]], dtype=dtype).to(device)
        modulations = dit.modulations(schedule.timesteps.to(device), size, torch.zeros_like(size), dtype)
    for k, delta in enumerate(schedule.deltas()):
        with current(device):
            if hold:
                latents = hold(latents, sigmas[k])
            now = passes.at(k) if shortcuts.guides(k, schedule.steps) else replace(passes.at(k), unconditional=None)
            velocity = guided_velocity(dit, latents.to(dtype), modulations[k], now, caches)
            latents = euler_step(latents, velocity, delta)
            if k + 1 == schedule.steps:
                check_finite(velocity.to(dtype), "decoder")
                latents = hold(latents, sigmas[-1]) if hold else latents
        yield latents


def guided_velocity(
    dit: Dit, latents: torch.Tensor, modulations: Modulations, passes: Passes, caches=(None, None)
) -> torch.Tensor:
    """The velocity of one step, float32; unconditional + scale * (conditional - unconditional)."""
    if passes.batched and passes.unconditional is not None:
        both = dit.step(latents.repeat(2, 1, 1, 1), modulations, passes.joined).float()
        velocity, without = both.chunk(2)
        return without + passes.guidance_scale * (velocity - without)
    velocity = dit.step(latents, modulations, passes.conditional, caches[0]).float()
    if passes.unconditional is None:
        return velocity
    without = dit.step(latents, modulations, passes.unconditional, caches[1]).float()
    return without + passes.guidance_scale * (velocity - without)
