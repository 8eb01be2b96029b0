"""Colours of latents while sampling runs: a linear map fitted to the checkpoint's own autoencoder.

Shapes: h w latents (8 px), N = h*w cells, C latent channels.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F

from ...pipeline.errors import CheckpointError
from ...pipeline.geometry import LATENT
from ...pipeline.loading.weights import load_module
from ...pipeline.models.config import VaeConfig
from ...pipeline.models.vae import Vae
from ...pipeline.planning.preview import linear_map

CELLS = 32  # a side of the image that is fitted
RIDGE = 1e-2  # keeps channels that carry no colour near zero


def rgb_factors(folder: Path, config: VaeConfig) -> tuple[list[list[float]], list[float]] | None:
    """`vae/` of a checkpoint -> (C, 3) factors and (3,) bias from normalised latents to colours in -1..1.

    Reads the autoencoder's weights; a folder without them has no preview.
    """
    try:
        vae = load_module(Vae, config, folder, "cpu", torch.float32)
    except CheckpointError as error:
        logging.warning("no preview while sampling: %s", error)
        return None
    colours = torch.rand(1, 3, CELLS // 4, CELLS // 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = F.interpolate(colours, scale_factor=4 * LATENT, mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        latents = vae.normalise(vae.encode(image))
    colours = F.avg_pool2d(image, LATENT)[0].flatten(1).T
    return tuple(values.tolist() for values in linear_map(latents[0].flatten(1).T, colours, RIDGE))
