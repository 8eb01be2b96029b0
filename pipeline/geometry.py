"""Sizes in pixels, latents, patches and planner tokens: the only home of 8, 16 and 32.

A latent is 8 px wide, a decoder patch 2 latents (16 px), a planner token 2 patches (32 px).
"""

import math
from dataclasses import dataclass

from .errors import InputError

LATENT = 8
PATCH = 16
TOKEN = 32
PREVIEW = 16  # the preview grid holds about PREVIEW**2 tokens
MAX_SIDE = 4096
MAX_ASPECT = 16


def check_size(height: int, width: int) -> None:
    """Accept sides in pixels that the model can draw, else raise `InputError` naming the nearest sizes."""
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} {value!r} is not a whole number of pixels; use a multiple of {TOKEN}")
        if not TOKEN <= value <= MAX_SIDE:
            raise InputError(f"{name} {value} is out of range; use a multiple of {TOKEN} from {TOKEN} to {MAX_SIDE}")
        if value % TOKEN:
            below = value // TOKEN * TOKEN
            above = min(below + TOKEN, MAX_SIDE)
            raise InputError(f"{name} {value} is not a multiple of {TOKEN}; use {below} or {above}")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(f"size {width}x{height} is longer than {MAX_ASPECT}:1; use sides closer to each other")


@dataclass(frozen=True)
class TrainedSizes:
    """Sizes in pixels that a checkpoint was trained on: sides `low` to `high`, or only the `listed` (height, width).

    Others can be generated, and look worse. Without a list, the release's: its makers trained on 1024 to 2048 a side.
    """

    low: int = 1024
    high: int = 2048
    listed: tuple[tuple[int, int], ...] = ()

    def __contains__(self, size: tuple[int, int]) -> bool:
        return size in self.listed if self.listed else all(self.low <= side <= self.high for side in size)

    def warning(self, height: int, width: int) -> str | None:
        """What to say about a size that was never trained; None for one that was."""
        if (height, width) in self:
            return None
        good = self.nearest(height / width)
        known = "a few sizes" if self.listed else f"sides of {self.low} to {self.high} px"
        return (
            f"{width}x{height} px was never trained: this checkpoint knows {known}, and others look worse; for this "
            f"shape use {good[1]}x{good[0]}"
        )

    def nearest(self, aspect: float) -> tuple[int, int]:
        """The (height, width) whose height over width comes nearest to `aspect`; the smallest such."""
        return min(self.listed or self._shapes(), key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), size))

    def like(self, height: int, width: int) -> tuple[int, int]:
        """A reference's shape at about one megapixel, or the nearest of the list."""
        return self.nearest(height / width) if self.listed else size_like(height, width)

    def _shapes(self) -> list[tuple[int, int]]:
        """Shapes whose shorter side is `low`."""
        sides = range(self.low, self.high + 1, TOKEN)
        return [(self.low, side) for side in sides] + [(side, self.low) for side in sides]


def fitting(height: int, width: int) -> tuple[int, int]:
    """The smallest size on the grid that holds an image of this one."""
    return tuple(-(-side // TOKEN) * TOKEN for side in (height, width))


def size_like(height: int, width: int, pixels: int = 1024 * 1024) -> tuple[int, int]:
    """A reference's shape at about so many pixels, on the grid."""
    scale = math.sqrt(pixels / (height * width))
    return tuple(min(max(round(side * scale / TOKEN), 1) * TOKEN, MAX_SIDE) for side in (height, width))


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Pixels -> (h, w) of the planner's full grid."""
    return height // TOKEN, width // TOKEN


def preview_grid(h: int, w: int) -> tuple[int, int]:
    """Full grid (h, w) -> (ph, pw) of the planner's preview grid, about 256 tokens of the same aspect."""
    return int(math.sqrt(h / w) * PREVIEW), int(math.sqrt(w / h) * PREVIEW)


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Pixels -> (H/8, W/8) of the latents."""
    return height // LATENT, width // LATENT


def patch_count(height: int, width: int) -> int:
    """Pixels -> number of decoder patches, the sequence length that sets the noise schedule's shift."""
    return (height // PATCH) * (width // PATCH)
