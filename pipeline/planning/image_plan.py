"""An image -> the plan that shows it, so that image-to-image and inpainting have a plan that agrees with their image.

Tokens come from the vision tokenizer, which sees 16 px of the half-size image for each, as it sees reference images.
"""

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps

from ..errors import InputError
from ..geometry import check_size, size_like, token_grid
from ..images import to_rgb
from ..models.config import ProcessorConfig
from ..models.planner import Planner
from ..plan import Plan
from .references import vit_pixels


def fitted(image: Image.Image, pixels: int | None = None) -> Image.Image:
    """An image of any mode and size up to 16:1 -> RGB on the grid of 32 px, of about so many pixels (None: its own).

    The middle is kept: what does not fit a multiple of 32 is cut off at both sides, less than half a token each.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"the image of a plan must be a PIL image, got {type(image).__name__}")
    height, width = size_like(image.height, image.width, pixels or image.height * image.width)
    check_size(height, width)
    return ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.LANCZOS)


@torch.no_grad()
def plan_of_images(
    planner: Planner,
    images: Sequence[Image.Image],
    prompt: str,
    config: ProcessorConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """`fitted` images of one size -> their plan, a row an image. `prompt` only says which texts they show."""
    grids = {token_grid(image.height, image.width) for image in images}
    if len(grids) != 1:
        raise InputError(f"a plan has images of one size, got {len(grids)} sizes; plan them one by one")
    h, w = grid = grids.pop()
    size = (w * config.patch_size, h * config.patch_size)
    halves = [image.resize(size, Image.Resampling(config.resample)) for image in images]
    rows = [planner.tokenize_image(vit_pixels(half, config).to(device, dtype)).cpu() for half in halves]
    return Plan(torch.stack(rows), grid, planner.config.vq_config.num_embeddings, [prompt] * len(rows), seed=0)
