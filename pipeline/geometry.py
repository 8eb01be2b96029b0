"""Sizes in pixels, latents, patches and planner tokens: the only home of 8, 16 and 32.

A latent is 8 px wide, a decoder patch 2 latents (16 px), a planner token 2 patches (32 px).
"""

import math

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
