"""The vision tokenizer's stage: the ViT learns to name, for every 32 px of a picture, the code it was drawn from.

The codebook is fixed beforehand (`models.planner`); a patch is classified by its angle to the codebook entries, which
is also how the tokenizer quantises.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import data, drawing, models
from .common import Recipe, Stage, optimisers

SHARPNESS = 12.0  # of the softmax over cosines


def pixels_for_vit(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H/2, W/2) as the processor prepares references."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    half = F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (models.IMAGE_MEAN, models.IMAGE_STD))
    return (half - mean) / std


def code_logits(planner, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, 16h, 16w) pixels -> (B, codes, h, w) scaled cosines, by the tokenizer's own modules."""
    visual, vq = planner.model.visual, planner.model.vqmodel
    x = visual.embeddings(visual.patch_embed.proj(pixels))
    grid = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    for block in visual.blocks:
        x = block(x)
    features = vq.quant_conv(x.transpose(1, 2).unflatten(2, grid))
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)
    return SHARPNESS * torch.einsum("bchw,nc->bnhw", F.normalize(features, dim=1), codebook)


def train(folder: Path, recipe: Recipe) -> None:
    """Train or go on training until `minutes` in all are spent."""
    torch.manual_seed(recipe.seed)
    model = models.planner().to(recipe.device)
    model.requires_grad_(False)
    model.model.visual.requires_grad_(True)
    model.model.vqmodel.quant_conv.requires_grad_(True)
    stage = Stage(folder, model, optimisers(model, "model.visual.blocks", recipe), recipe.minutes)
    rng = random.Random(recipe.seed + stage.step)
    grids = data.parse_sizes(recipe.sizes)
    while stage.running():
        h, w, _ = rng.choices(grids, [weight for *_, weight in grids])[0]
        scenes = data.draw_scenes(rng, h, w, recipe.batch, recipe.regions)
        codes = np.stack([s.codes for s in scenes])
        pixels = pixels_for_vit(drawing.render(codes, np.stack([s.chars for s in scenes]))).to(recipe.device)
        logits = code_logits(stage.model, pixels + 0.03 * torch.randn_like(pixels))
        target = torch.from_numpy(codes).to(recipe.device)
        hits = (logits.argmax(1) == target).float().mean()
        stage.update(F.cross_entropy(logits, target), tokens=hits)
