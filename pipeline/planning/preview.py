"""Plans as images: a square a token, in a colour of its codebook entry.

Shapes: B images, h w full grid, V codebook size, D codebook channels.
"""

import numpy as np
import torch
from PIL import Image

from ..plan import Plan

PREVIEW_SIDE = 512  # px of the longer side
UNPLANNED = (40, 40, 40)


def codebook_colours(codebook: torch.Tensor) -> torch.Tensor:
    """(V, D) codebook -> (V, 3) uint8: its first three principal components as red, green and blue."""
    entries = codebook.float().cpu()
    _, directions = torch.linalg.eigh(torch.cov(entries.T))  # ascending
    components = (entries - entries.mean(0)) @ directions[:, -3:].flip(1)
    low, high = torch.quantile(components, torch.tensor([0.02, 0.98]), dim=0)
    return ((components - low) / (high - low).clamp_min(1e-8) * 255).clamp(0, 255).to(torch.uint8)


def draw_tokens(tokens: torch.Tensor, grid: tuple[int, int], colours: torch.Tensor) -> Image.Image:
    """(B, n) ids of the first n tokens of a grid -> the B grids side by side, one colour a codebook entry."""
    rows, done = tokens.shape
    canvas = torch.tensor(UNPLANNED, dtype=torch.uint8).expand(rows, grid[0] * grid[1], 3).clone()
    canvas[:, :done] = colours[tokens]
    joined = canvas.unflatten(1, grid).movedim(0, 1).flatten(1, 2)
    scale = max(1, PREVIEW_SIDE // max(joined.shape[:2]))
    return Image.fromarray(np.kron(joined.numpy(), np.ones((scale, scale, 1), np.uint8)))


def plan_images(plan: Plan, colours: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) images of a plan's full grids in 0..1, about 512 px."""
    images = [draw_tokens(row[None], plan.grid, colours) for row in plan.prior_token_ids_d32]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
