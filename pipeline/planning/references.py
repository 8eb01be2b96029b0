"""Reference images -> pixels for the vision tokenizer and for the VAE, of sizes that always agree.

Follows transformers 5.23 `image_processing_pil_glm_image.py`: the ViT sees the image at half size in 16 px patches,
so a token is 32 px of the (limited) image. What differs: the VAE's pixels are resized to exactly 32 px a token,
where diffusers rounds them by another rule and fails; images are made RGB by `images.to_rgb`; tiny ones are enlarged.
Shapes: h w grid of a reference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..geometry import TOKEN
from ..images import to_rgb
from ..loading.checkpoint import BUNDLED
from ..models.config import ProcessorConfig
from ..models.released import REFERENCE_PIXELS

MAX_REFERENCE_ASPECT = 4


@dataclass(frozen=True)
class PreparedReference:
    """`pixels` uint8 (32h, 32w, 3) for the VAE, `vit_pixels` float32 (3, 16h, 16w) normalised for the ViT."""

    pixels: torch.Tensor
    vit_pixels: torch.Tensor
    grid: tuple[int, int]


def prepare_reference(image: Image.Image, config: ProcessorConfig) -> PreparedReference:
    """An image of any mode and size up to 4:1 -> its pixels for both encoders."""
    if not isinstance(image, Image.Image):
        raise InputError(f"a reference image must be a PIL image, got {type(image).__name__}")
    image = to_rgb(image)
    h, w = reference_grid(image.height, image.width, config)
    patch = config.patch_size
    half = image.resize((w * patch, h * patch), Image.Resampling(config.resample))
    full = image.resize((w * TOKEN, h * TOKEN), Image.Resampling.LANCZOS)  # diffusers' filter
    return PreparedReference(torch.from_numpy(np.array(full)), vit_pixels(half, config), (h, w))


def reference_grid(height: int, width: int, config: ProcessorConfig) -> tuple[int, int]:
    """Pixels of a reference -> (h, w) tokens, by the processor's rule."""
    if max(height, width) > MAX_REFERENCE_ASPECT * min(height, width):
        ratio = max(height, width) / min(height, width)
        raise InputError(
            f"reference image {width}x{height} is {ratio:.1f}:1, at most {MAX_REFERENCE_ASPECT}:1 is accepted; crop it"
        )
    patch = config.patch_size
    shortest, longest = round(math.sqrt(config.min_pixels)), round(math.sqrt(config.max_pixels))
    scale = max(1.0, shortest / min(height, width))
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    sides = [max(patch, round(side // 2 * scale / patch) * patch) for side in (height, width)]
    if max(sides) > longest:  # unreachable at the release's limits; kept for a processor with narrow ones
        shrink = max(sides) / longest
        sides = [max(patch, math.floor(side / shrink / patch) * patch) for side in sides]
    return sides[0] // patch, sides[1] // patch


def reference_grids(sizes: Sequence[tuple[int, int]], folder: Path | None) -> tuple[tuple[int, int], ...]:
    """Pixels (height, width) of references -> what the checkpoint in a folder makes of them, or the release (None)."""
    if not sizes:
        return ()
    config = ProcessorConfig.from_folder((folder or BUNDLED) / "processor")
    config = config if folder else replace(config, **REFERENCE_PIXELS)
    return tuple(reference_grid(height, width, config) for height, width in sizes)


def vit_pixels(image: Image.Image, config: ProcessorConfig) -> torch.Tensor:
    """RGB image -> float32 (3, H, W), normalised for the ViT."""
    values = np.asarray(image).astype(np.float32) * np.float32(config.rescale_factor)
    values = (values - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())
