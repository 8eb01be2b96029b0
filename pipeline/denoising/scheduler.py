"""The noise schedule: sigmas shifted by the image's size, the unshifted times the decoder is told, and Euler's step.

Follows diffusers v0.42.1 `pipeline_glm_image.py` and `scheduling_flow_match_euler_discrete.py`, bit for bit. The
decoder was trained on unshifted times: it gets `t - 1`, never 1000 * sigma.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..models.config import SchedulerConfig


@dataclass(frozen=True)
class Schedule:
    """`sigmas` float32 (steps + 1,) from nearly 1 to 0, `timesteps` float32 (steps,) for the decoder; on the CPU."""

    sigmas: torch.Tensor
    timesteps: torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def deltas(self) -> list[float]:
        """Change of sigma in each step, as Python numbers: a step needs nothing from the device."""
        return (self.sigmas[1:] - self.sigmas[:-1]).tolist()


def shift_mu(config: SchedulerConfig, patches: int) -> float:
    """The linear shift's strength for an image of `patches` decoder patches."""
    return config.base_shift + config.max_shift * (patches / config.base_image_seq_len) ** 0.5


def schedule(config: SchedulerConfig, steps: int, patches: int) -> Schedule:
    """`steps` Euler steps for an image of `patches` decoder patches (`geometry.patch_count`)."""
    total = config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
        raise InputError(f"steps {steps!r} is not usable; give a whole number from 1 to {total}")
    times = np.trunc(np.linspace(total, 1.0, steps + 1)[:-1]).astype(np.float32)
    mu = shift_mu(config, patches)
    sigmas = mu / (mu + (1 / (times / np.float32(total)) - 1))
    return Schedule(torch.from_numpy(np.append(sigmas, np.float32(0))), torch.from_numpy(times - 1))


def euler_step(latents: torch.Tensor, velocity: torch.Tensor, delta: float) -> torch.Tensor:
    """float32 latents moved by `delta` of sigma along the velocity."""
    return latents + delta * velocity
