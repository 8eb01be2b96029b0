"""What the decoder is given besides a plan: noise, the texts to render in each row, and the reference images.

The only home of these rules, for `GlmImage` and for the nodes.
"""

from collections.abc import Callable, Sequence

import torch

from ..errors import InputError
from ..geometry import latent_size
from ..plan import SEEDS, Plan, Reference, upsample_tokens
from ..text import check_texts, quoted_texts
from .options import Glyphs

LATENT_CHANNELS = 16


def noise_shape(rows: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(B, 16, H/8, W/8) for images of these pixels."""
    return (rows, LATENT_CHANNELS, *latent_size(height, width))


def sample_noise(shape: Sequence[int], seed: int) -> torch.Tensor:
    """(B, C, H/8, W/8) from a generator of its own for every row, seed + k, on the CPU: the same on every device."""
    rows, *rest = shape
    if seed + rows - 1 not in SEEDS:
        raise InputError(f"seed {seed} leaves no seeds for {rows} images; use at most 2^64 - {rows}")
    return torch.stack([torch.randn(rest, generator=torch.Generator().manual_seed(seed + k)) for k in range(rows)])


def check_noise(noise: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    if not isinstance(noise, torch.Tensor) or tuple(noise.shape) != tuple(shape):
        came = tuple(noise.shape) if isinstance(noise, torch.Tensor) else type(noise).__name__
        raise InputError(f"noise is {came}, this plan takes {tuple(shape)}")
    if not torch.isfinite(noise).all():
        raise InputError("noise holds NaN or infinity")
    return noise


def glyph_rows(prompts: Sequence[str], given: Glyphs | None, mode: str) -> list[list[str]]:
    """The texts to render in each row: those given (one list for all rows, or one a row), else the prompts' own."""
    if given is None:
        rows = [quoted_texts(prompt, mode) for prompt in prompts]
    elif all(isinstance(text, str) for text in given):
        rows = [list(given)] * len(prompts)
    else:
        rows = [list(row) for row in given]
    if len(rows) != len(prompts):
        raise InputError(f"glyph_texts must be one list of strings, or {len(prompts)} lists, one for each image")
    for row in rows:
        check_texts(row)
    return rows


def shared_rows(rows: list[list[str]]) -> list[list[str]]:
    """One row where all are equal, so that the glyph encoder reads it once."""
    return rows[:1] if all(row == rows[0] for row in rows) else rows


def reference_pixels(reference: Reference) -> torch.Tensor:
    """(1, H, W, 3) in 0..1, as the VAE encodes it."""
    return reference.pixels[None].float() / 255


def reference_patch_ids(reference: Reference) -> torch.Tensor:
    """int64 (1, patches): a token for every decoder patch of the reference."""
    return upsample_tokens(reference.prior_token_ids_d32, reference.grid)[None]


def encode_references(plan: Plan, encode: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Latents (1, 16, 4h, 4w) of every reference, by `encode(pixels)` of a VAE."""
    return [encode(reference_pixels(reference)) for reference in plan.references]
