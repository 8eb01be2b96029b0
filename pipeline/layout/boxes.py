"""Boxes of a layout on a grid of tokens, patches or latents.

Shapes: n regions, h w grid.
"""

import torch

from .regions import Layout


def box_weights(layout: Layout, grid: tuple[int, int], falloff: float = 0.0) -> torch.Tensor:
    """Float32 (n, h, w): 0 outside a region's box; inside 1, or rising from the edge over `falloff` cells.

    A cell is inside when its centre is. A box that holds no centre takes the cell its own centre lies in.
    """
    h, w = grid
    weights = torch.zeros(len(layout), h, w)
    for i, region in enumerate(layout.regions):
        down = _depth(region.y, region.bottom, h)
        across = _depth(region.x, region.right, w)
        depth = torch.minimum(down[:, None], across[None])
        if not bool((depth >= 0).any()):
            row, column = ((region.y + region.bottom) / 2, h), ((region.x + region.right) / 2, w)
            depth[_cell(*row), _cell(*column)] = max(falloff, 1.0)
        inside = depth >= 0
        weights[i] = torch.where(inside, (depth / falloff).clamp(max=1.0) if falloff else 1.0, 0.0)
    return weights


def _depth(start: float, stop: float, cells: int) -> torch.Tensor:
    """(cells,) distance of each cell's centre to the nearer end of start..stop, in cells; negative outside."""
    centres = torch.arange(cells, dtype=torch.float32) + 0.5
    return torch.minimum(centres - start * cells, stop * cells - centres)


def _cell(centre: float, cells: int) -> int:
    return min(max(int(centre * cells), 0), cells - 1)


def inside_boxes(layout: Layout, grid: tuple[int, int]) -> torch.Tensor:
    """Boolean (n, h, w): which cells of a grid belong to which region."""
    return box_weights(layout, grid) > 0
