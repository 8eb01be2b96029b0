"""Images as files, as pillow's and as tensors. Needs no torch: a tensor is only asked for what it can do itself."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from .errors import InputError
from .files import replacing

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 26  # of a file to read: 8192 x 8192, 200 MB as RGB
# What pillow's readers raise on damaged files, each format its own.
BROKEN = (
    Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip


def read(path: str | os.PathLike) -> Image.Image:
    """An image file, whole and as RGB, so that a damaged one is named before anything else is done."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            _check_pixels(image, path)
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist") from None
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"image {path} cannot be read: {error or type(error).__name__}") from None


def _check_pixels(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"image {path} is {image.width}x{image.height}; at most {MAX_PIXELS:,} pixels are read")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode -> RGB: upright, transparency over white, 16 and 32 bits scaled to 8."""
    try:
        return _to_rgb(image)
    except InputError:
        raise
    except BROKEN as error:  # images are unpacked when first used
        raise InputError(f"an image cannot be unpacked: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode Pillow turns premultiplied grey into
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits, or floats in 0..1 or 0..255, -> 8 bits; the values tell their range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"a reference image of mode {image.mode} holds NaN or infinite pixels")
    peak = values.max()
    if image.mode == "F" and peak <= 1:
        scale = 255.0
    elif peak > 255 or image.mode.startswith("I;16"):
        scale = 255 / 65535
    else:
        scale = 1.0
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """(B, H, W, 3) in 0..1 -> RGB images."""
    return [Image.fromarray(image.mul(255).round().byte().numpy()) for image in images.cpu()]


def save_png(image: Image.Image, path: str | os.PathLike, entries: dict[str, str]) -> None:
    """Write a PNG with text entries, whole or not at all."""
    info = PngInfo()
    for key, value in entries.items():
        info.add_itxt(key, value)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def cut_back(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image that was made larger, so that it falls on the grid."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
