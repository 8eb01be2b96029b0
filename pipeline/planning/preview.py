"""Plans as images: a square a token, in the colour of what the token looks like.

The colours are fitted to the checkpoint itself, as ComfyUI's latent previews are: its vision tokenizer reads
pictures of known colours, and a linear map from codebook entries to colours is fitted to what it says. A token that was
read leans towards the mean of what was seen under it, all others have the map's colour.
Shapes: B images, h w full grid, V codebook size, D codebook channels, N tokens that were read.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..geometry import TOKEN
from ..models.config import ProcessorConfig
from ..models.planner import Planner
from ..plan import Plan
from .references import vit_pixels

PREVIEW_SIDE = 512  # px of the longer side
UNPLANNED = (40, 40, 40)
GAP = 6  # px between plans
SWATCHES, SIDE = 16, 8  # pictures that the tokenizer reads, and their side in tokens
RIDGE = 0.1
TRUST = 4.0  # readings of a token that weigh as much as the map


def token_colours(planner: Planner, codebook: torch.Tensor, processor: ProcessorConfig, device, dtype) -> torch.Tensor:
    """A planner on its device, its (V, D) codebook and how it wants pictures -> (V, 3) uint8."""
    pictures = swatches(torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = [planner.tokenize_image(_vit_pixels(p, processor).to(device, dtype)).cpu() for p in pictures]
    seen = [F.avg_pool2d(picture, TOKEN).flatten(1).T for picture in pictures]
    return fitted_colours(codebook.float().cpu(), torch.cat(read), torch.cat(seen))


def fitted_colours(codebook: torch.Tensor, ids: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """(V, D) codebook, (N,) tokens and their (N, 3) colours in 0..1 -> (V, 3) uint8, a colour for every token."""
    factors, bias = linear_map(codebook[ids], colours, RIDGE)
    mapped = codebook @ factors + bias
    counts = torch.bincount(ids, minlength=len(codebook))[:, None]
    sums = torch.zeros(len(codebook), 3).index_add_(0, ids, colours)
    return ((sums + TRUST * mapped) / (counts + TRUST) * 255).round().clamp(0, 255).to(torch.uint8)


def codebook_colours(codebook: torch.Tensor) -> torch.Tensor:
    """(V, D) codebook -> (V, 3) uint8: its first three principal components, where no tokenizer is at hand."""
    entries = codebook.float().cpu()
    _, directions = torch.linalg.eigh(torch.cov(entries.T))  # ascending
    components = (entries - entries.mean(0)) @ directions[:, -3:].flip(1)
    low, high = torch.quantile(components, torch.tensor([0.02, 0.98]), dim=0)
    return ((components - low) / (high - low).clamp_min(1e-8) * 255).clamp(0, 255).to(torch.uint8)


def linear_map(x: torch.Tensor, colours: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C) and (N, 3) -> the ridge regression's factors (C, 3) and bias (3,)."""
    x = F.pad(x, (0, 1), value=1.0)
    penalty = ridge * len(x) * torch.eye(x.shape[1])
    penalty[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + penalty, x.T @ colours)
    return solution[:-1], solution[-1]


def swatches(generator: torch.Generator) -> list[torch.Tensor]:
    """Pictures (3, H, W) in 0..1 of rectangles of plain colours, half of them near the corners of the colour cube."""
    return [_swatch(generator) for _ in range(SWATCHES)]


def _swatch(generator: torch.Generator) -> torch.Tensor:
    picture = torch.rand(3, 1, 1, generator=generator).expand(3, SIDE * TOKEN, SIDE * TOKEN).clone()
    for i in range(3 * SIDE):
        y, x = (torch.rand(2, generator=generator) * SIDE * TOKEN).long().tolist()
        height, width = ((1 + torch.rand(2, generator=generator) * (SIDE - 1)) * TOKEN).long().tolist()
        colour = torch.rand(3, 1, 1, generator=generator)
        picture[:, y : y + height, x : x + width] = 0.05 + 0.9 * colour.round() if i % 2 else colour
    return picture


def _vit_pixels(picture: torch.Tensor, processor: ProcessorConfig) -> torch.Tensor:
    """A picture as the vision tokenizer sees it, at half its size."""
    image = Image.fromarray((picture.movedim(0, 2) * 255).byte().numpy())
    return vit_pixels(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC), processor)


def draw_tokens(tokens: torch.Tensor, grid: tuple[int, int], colours: torch.Tensor) -> Image.Image:
    """(B, n) ids of the first n tokens of a grid -> a sheet of the B grids, one colour a codebook entry."""
    rows, done = tokens.shape
    cells = torch.tensor(UNPLANNED, dtype=torch.uint8).expand(rows, grid[0] * grid[1], 3).clone()
    cells[:, :done] = colours[tokens]
    columns = sheet_columns(rows, grid)
    lines = math.ceil(rows / columns)
    scale = max(1, PREVIEW_SIDE // max(lines * grid[0], columns * grid[1]))
    height, width = (side * scale + GAP for side in grid)
    sheet = Image.new("RGB", (columns * width - GAP, lines * height - GAP), UNPLANNED)
    for i, plan in enumerate(cells.unflatten(1, grid).numpy()):
        square = Image.fromarray(np.kron(plan, np.ones((scale, scale, 1), np.uint8)))
        sheet.paste(square, (i % columns * width, i // columns * height))
    return sheet


def sheet_columns(plans: int, grid: tuple[int, int]) -> int:
    """Columns in which so many grids come nearest to a square."""
    sides = {n: (n * grid[1], math.ceil(plans / n) * grid[0]) for n in range(1, plans + 1)}
    return min(sides, key=lambda n: (max(sides[n]), -n))


def plan_images(plan: Plan, colours: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) images of a plan's full grids in 0..1, about 512 px."""
    images = [draw_tokens(row[None], plan.grid, colours) for row in plan.prior_token_ids_d32]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255


def plan_sheet(plan: Plan, colours: torch.Tensor) -> torch.Tensor:
    """(1, H, W, 3) all full grids of a plan as one image."""
    sheet = draw_tokens(plan.prior_token_ids_d32, plan.grid, colours)
    return torch.from_numpy(np.asarray(sheet).copy())[None].float() / 255
