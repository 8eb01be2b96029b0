"""What both sides of a comparison made, as one picture: reference, ours, and their difference, in three columns."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..planning.preview import draw_tokens
from .compare import Comparison, Pair

AMPLIFIED = 10  # times, so that differences below what eyes see show
SIDE, GAP, LINE = 384, 8, 16  # px of a cell's longer side, between cells, of a line of text


def sheet(comparison: Comparison) -> Image.Image:
    """A row for plan, latents and image each, as far as there are any."""
    made = comparison.made
    rows = {}
    if "plan" in made:
        rows["plan"] = _plan(made["plan"], comparison)
    if "latents" in made:
        rows["latents (three channels)"] = _picture(made["latents"], _as_colours(made["latents"]))
    if "image" in made:
        rows["image"] = _picture(made["image"], lambda image: image[0])
    height, width = comparison.request.height, comparison.request.width
    cell = tuple(max(1, round(side * SIDE / max(height, width))) for side in (width, height))
    canvas = Image.new("RGB", (3 * (cell[0] + GAP) + GAP, len(rows) * (cell[1] + LINE + GAP) + GAP), "white")
    write = ImageDraw.Draw(canvas)
    for row, (name, images) in enumerate(rows.items()):
        top = GAP + row * (cell[1] + LINE + GAP)
        for column, (title, image) in enumerate(images.items()):
            left = GAP + column * (cell[0] + GAP)
            write.text((left, top), f"{name}, {title}", fill="black")
            if image is not None:
                canvas.paste(image.resize(cell, Image.Resampling.NEAREST), (left, top + LINE))
    return canvas


def _plan(pair: Pair, comparison: Comparison) -> dict[str, Image.Image | None]:
    grid = comparison.grids[1]
    full = {name: getattr(pair, name) for name in ("reference", "ours")}
    full = {name: None if ids is None else ids[None, -grid[0] * grid[1] :] for name, ids in full.items()}
    shown = {name: None if ids is None else draw_tokens(ids, grid, comparison.colours) for name, ids in full.items()}
    if full["reference"] is None:
        return {**shown, "difference": None}
    differ = (full["reference"] != full["ours"]).view(grid).numpy().astype(np.uint8) * 255
    return {**shown, "tokens that differ": Image.fromarray(differ)}


def _picture(pair: Pair, colours) -> dict[str, Image.Image | None]:
    """Tensors as `colours` turns them into (H, W, 3) in 0..1."""
    if pair.reference is None:
        return {"reference": None, "ours": _image(colours(pair.ours)), "difference": None}
    reference, ours = colours(pair.reference), colours(pair.ours)
    away = (reference - ours).abs() * AMPLIFIED
    return {"reference": _image(reference), "ours": _image(ours), f"difference x{AMPLIFIED}": _image(away)}


def _as_colours(pair: Pair):
    """Three channels of latents, by the range of the reference's."""
    known = (pair.ours if pair.reference is None else pair.reference)[0, :3]
    low, high = known.amin(), known.amax()
    return lambda latents: ((latents[0, :3] - low) / (high - low)).movedim(0, -1)


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().byte().numpy())
