"""ComfyUI's IMAGE, float (B, H, W, 3) in 0..1, from and to pillow."""

import numpy as np
import torch
from PIL import Image

from .validation import check_numbers


def to_pil(image: torch.Tensor) -> Image.Image:
    """(H, W, 3 or 4) in 0..1 -> RGB image."""
    check_numbers({"image": image})
    values = (image[..., :3].cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.numpy())


def to_image(image: Image.Image) -> torch.Tensor:
    """RGB image -> (1, H, W, 3) in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255)[None]
