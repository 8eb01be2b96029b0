"""The small model's latent: what each of the 16 channels of an 8x8 px block says.

A block holds one or two colours and a mask between them, so its latent is written down rather than found: channels
0-2 are the paper, 3-5 ink minus paper, 6-15 the block's mask in the ten whitened principal components of all masks that
the pictures contain. The autoencoder is trained to read and to draw this latent; the decoder can then be trained
on it without the autoencoder. The same letter has the same mask channels whatever its colours are.
"""

from functools import cache

import numpy as np

from . import drawing

BLOCK = 8
COLOUR_SCALE = 1.5
MASK_SCALE = 1.5  # the mask channels vary as much as the colours
MASK_CHANNELS = 10
CHANNELS = 6 + MASK_CHANNELS


def _blocks(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) masks -> (N, H/8, W/8, 64) blocks."""
    n, height, width = masks.shape
    blocks = masks.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK).swapaxes(2, 3)
    return blocks.reshape(n, height // BLOCK, width // BLOCK, BLOCK * BLOCK)


@cache
def _basis() -> np.ndarray:
    """(64, 10) whitening projection of the masks that are neither empty nor full."""
    blocks = np.concatenate([_blocks(m).reshape(-1, 64) for m in (drawing.glyph_masks(), drawing.shape_masks())])
    mixed = blocks[(blocks.max(1) > 0.03) & (blocks.min(1) < 0.97)]
    _, scale, components = np.linalg.svd(mixed, full_matrices=False)
    return components[:MASK_CHANNELS].T / scale[:MASK_CHANNELS] * len(mixed) ** 0.5 * MASK_SCALE


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Per character (N, 4, 2, 11) and per shape (N, 4, 4, 11): ten mask channels, then empty 0, mixed 1, full 2."""
    tables = []
    for masks in (drawing.glyph_masks(), drawing.shape_masks()):
        blocks = _blocks(masks)
        kind = np.where(blocks.max(-1) <= 0.03, 0, np.where(blocks.min(-1) >= 0.97, 2, 1))[..., None]
        tables.append(np.concatenate([np.where(kind == 1, blocks @ _basis(), 0), kind], -1).astype(np.float32))
    return tables[0], tables[1]


def latents(codes: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """(B, h, w) codes and (B, h, 2w) characters -> (B, 16, 4h, 4w) float32 latents."""
    b, h, w = codes.shape
    paper, ink, shape = drawing.code_table()
    letters, shapes = _tables()
    cells = letters[chars].reshape(b, h, w, 2, 4, 2, -1).swapaxes(3, 4).reshape(b, h, w, 4, 4, -1)
    cells = np.where(shape[codes][:, :, :, None, None, None] > 0, shapes[shape[codes]], cells)
    cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, 4 * h, 4 * w, -1)
    kind = cells[..., -1:]
    under = (paper[codes] / 127.5 - 1).repeat(4, 1).repeat(4, 2)
    over = (ink[codes] / 127.5 - 1).repeat(4, 1).repeat(4, 2)
    solid = np.where(kind == 2, over, under)
    contrast = np.where(kind == 1, over - under, 0)
    z = np.concatenate([solid * COLOUR_SCALE, contrast * COLOUR_SCALE, cells[..., :-1]], -1)
    return np.ascontiguousarray(z.transpose(0, 3, 1, 2), np.float32)


def pictures(z: np.ndarray) -> np.ndarray:
    """(B, 16, h, w) latents -> (B, 8h, 8w, 3) uint8, by the latent's definition: a look at samples without a VAE."""
    b, _, h, w = z.shape
    z = z.transpose(0, 2, 3, 1)
    mask = np.clip(z[..., 6:] @ np.linalg.pinv(_basis()), 0, 1).reshape(b, h, w, BLOCK, BLOCK, 1)
    paper, contrast = (z[..., i : i + 3].reshape(b, h, w, 1, 1, 3) / COLOUR_SCALE for i in (0, 3))
    pixels = (paper + mask * contrast).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * BLOCK, w * BLOCK, 3)
    return np.rint(np.clip((pixels + 1) * 127.5, 0, 255)).astype(np.uint8)
