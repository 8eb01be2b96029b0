"""The autoencoder's stage: read and draw the designed latent.

Encoder and decoder are trained side by side, not through each other: the encoder on the latent of each picture, the
decoder on that latent with up to 0.3 of noise, so that it draws clean letters from latents that are nearly right.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import data, drawing, latent, models
from .common import Recipe, Stage

LATENT_NOISE = 0.3
CROPS = ((1, 1), (1, 2), (2, 1), (2, 2))  # tokens; small pictures are cheap steps
WHOLE = 0.4  # share of steps on whole scenes: mostly blank, they give the group norms other statistics than crops


def psnr(error: torch.Tensor) -> torch.Tensor:
    """Decibels of an error between pictures in -1..1."""
    return 10 * torch.log10(4 / error.detach().pow(2).mean())


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_grids(rng: random.Random, sizes: list, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, h, w) codes and (B, h, 2w) characters, about `tokens` tokens in all: crops of lettering or whole scenes."""
    if rng.random() < WHOLE:
        h, w, _ = rng.choice(sizes)
        scenes = data.draw_scenes(rng, h, w, max(2, tokens // (h * w)), several=0.4)
        return np.stack([s.codes for s in scenes]), np.stack([s.chars for s in scenes])
    h, w = rng.choice(CROPS)
    return data.random_cells(np.random.default_rng(rng.getrandbits(32)), max(2, tokens // (h * w)), h, w)


def train(folder: Path, recipe: Recipe) -> None:
    """Train or go on training until `minutes` in all are spent."""
    torch.manual_seed(recipe.seed)
    model = models.vae().to(recipe.device, memory_format=torch.channels_last)
    stage = Stage(folder, model, [torch.optim.AdamW(model.parameters(), recipe.lr, betas=(0.9, 0.99))], recipe.minutes)
    rng, sizes = random.Random(recipe.seed + stage.step), data.parse_sizes(recipe.sizes)
    while stage.running():
        grids = draw_grids(rng, sizes, recipe.batch)
        x = to_pixels(drawing.render(*grids)).to(recipe.device, memory_format=torch.channels_last)
        z = torch.from_numpy(latent.latents(*grids)).to(recipe.device)
        noise = LATENT_NOISE * torch.rand(len(z), 1, 1, 1, device=recipe.device) * torch.randn_like(z)
        mean = stage.model.encode(x)
        error = stage.model.decoder(z + noise) - x
        reading = F.mse_loss(mean, z)
        loss = 0.5 * error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * reading
        stage.update(loss, reading=reading, psnr=psnr(error))
