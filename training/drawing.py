"""The pixels of pictures that `data.py` makes up. Nothing is read from disk but one bundled font."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data import (
    ALPHABET,
    CELL,
    CODEBOOK,
    COLOURS,
    NAMES,
    PAIRS,
    SHAPES,
    SLOTS,
    TOKEN,
    blank_code,
    shape_code,
    text_code,
)

FONT = Path(__file__).parent / "fonts" / "DejaVuSansMono-Bold-ascii.ttf"
FONT_SIZE = 26  # px; the advance is 15.7 px, so that a character fills one 16x32 px half token
BASELINE = 25  # px below the token's upper edge


@cache
def glyph_masks() -> np.ndarray:
    """(1 + characters, 32, 16) coverage of every character of the alphabet; the first is empty."""
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    masks = [np.zeros((TOKEN, CELL), np.uint8)]
    for character in ALPHABET:
        image = Image.new("L", (CELL, TOKEN))
        ImageDraw.Draw(image).text((CELL / 2, BASELINE), character, fill=255, font=font, anchor="ms")
        masks.append(np.asarray(image))
    return np.stack(masks).astype(np.float32) / 255


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in the unit square."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if shape == "square":
        return [(0.15, 0.15), (0.85, 0.15), (0.85, 0.85), (0.15, 0.85)]
    if shape == "triangle":
        return [(0.5, 0.1), (0.92, 0.85), (0.08, 0.85)]
    if shape == "star":
        points = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2, 0.18, 0.44)
        return list(zip(0.5 + radius * np.cos(points), 0.53 + radius * np.sin(points)))
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return list(zip(0.5 + x / 42, 0.46 - y / 42))
    return list(zip(0.5 + 0.38 * np.cos(turn), 0.5 + 0.38 * np.sin(turn)))


@cache
def shape_masks() -> np.ndarray:
    """(1 + shapes, 32, 32) coverage of every shape; the first is empty."""
    masks = [np.zeros((TOKEN, TOKEN), np.float32)]
    for shape in SHAPES:
        image = Image.new("L", (TOKEN * 8, TOKEN * 8))
        ImageDraw.Draw(image).polygon([(x * TOKEN * 8, y * TOKEN * 8) for x, y in _outline(shape)], fill=255)
        masks.append(np.asarray(image.resize((TOKEN, TOKEN), Image.BOX), np.float32) / 255)
    return np.stack(masks)


@cache
def code_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every code: paper (640, 3), ink (640, 3), shape (640,); unused codes are white."""
    paper = np.full((CODEBOOK, 3), COLOURS["white"], np.float32)
    ink = paper.copy()
    shape = np.zeros(CODEBOOK, np.int64)
    for name in NAMES:
        paper[blank_code(name)] = ink[blank_code(name)] = COLOURS[name]
    for under, over in PAIRS:
        codes = [shape_code(under, over, s) for s in SHAPES] + [text_code(under, over, n, j) for n, j in SLOTS]
        paper[codes], ink[codes] = COLOURS[under], COLOURS[over]
        shape[codes[: len(SHAPES)]] = np.arange(len(SHAPES)) + 1
    return paper, ink, shape


def render(codes: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """(B, h, w) codes and (B, h, 2w) characters -> (B, 32h, 32w, 3) uint8 pictures."""
    b, h, w = codes.shape
    paper, ink, shape = code_table()
    letters = glyph_masks()[chars]  # (B, h, 2w, 32, 16)
    letters = letters.reshape(b, h, w, 2, TOKEN, CELL).swapaxes(3, 4).reshape(b, h, w, TOKEN, TOKEN)
    mask = np.maximum(letters, shape_masks()[shape[codes]])[..., None]
    under, over = paper[codes][:, :, :, None, None], ink[codes][:, :, :, None, None]
    pixels = under + mask * (over - under)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * TOKEN, w * TOKEN, 3)
    return np.rint(pixels).astype(np.uint8)


def write_sheet(pictures: np.ndarray, path: Path, columns: int = 4) -> None:
    """(B, H, W, 3) uint8 -> one PNG."""
    b, height, width, _ = pictures.shape
    rows = -(-b // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = picture
    Image.fromarray(sheet).save(path)
