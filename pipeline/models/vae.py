"""The autoencoder: pixels -> latents of an eighth of their side, and back, whole or in strips.

Follows diffusers `autoencoder_kl.py` v0.42.1 without attention and quantisation convolutions, which GLM-Image's
checkpoint does not have. What differs: images are decoded one by one, so that a batch needs no more memory than one
image, and decoding in strips gives the whole decode's picture, because its norms see the whole image.
Letters: B batch, C channels, H W pixels, h w latents.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..devices.layer_offload import visiting
from . import vae_tiling as vae_strips
from .config import VaeConfig

EPS = 1e-6  # of every group norm; the reference fixes it in code
ON_HOST = ("encoder.",)  # what an accelerator needs for references and held pixels only
STRIP = 64  # rows that are computed at once where memory is short
LIVE = 3  # of the widest activation that are alive at once in a whole decode: input, activated, convolved


class ResnetBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, groups: int, operations, **place):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, width_in, eps=EPS, **place)
        self.conv1 = operations.Conv2d(width_in, width_out, 3, padding=1, **place)
        self.norm2 = operations.GroupNorm(groups, width_out, eps=EPS, **place)
        self.conv2 = operations.Conv2d(width_out, width_out, 3, padding=1, **place)
        if width_in != width_out:
            self.conv_shortcut = operations.Conv2d(width_in, width_out, 1, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x), inplace=True))
        hidden = self.conv2(F.silu(self.norm2(hidden), inplace=True))
        hidden += self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return hidden


class Downsample(nn.Module):
    def __init__(self, width: int, operations, **place):
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, stride=2, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # the reference pads right and bottom only


class Upsample(nn.Module):
    def __init__(self, width: int, operations, **place):
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, padding=1, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, then the change to the next one, if there is one."""

    def __init__(self, width_in: int, width_out: int, layers: int, groups: int, operations, **place):
        super().__init__()
        widths = [width_in, *[width_out] * layers]
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups, operations, **place) for a, b in zip(widths, widths[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resnets:
            x = block(x)
        for change in (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            x = change(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig, operations, **place):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = operations.Conv2d(config.in_channels, widths[0], 3, padding=1, **place)
        self.down_blocks = nn.ModuleList(
            Level(a, b, config.layers_per_block, groups, operations, **place)
            for a, b in zip((widths[0], *widths), widths)
        )
        for level in self.down_blocks[:-1]:
            width = level.resnets[-1].conv2.out_channels
            level.downsamplers = nn.ModuleList([Downsample(width, operations, **place)])
        self.mid_block = Level(widths[-1], widths[-1], 2, groups, operations, **place)
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=EPS, **place)
        self.conv_out = operations.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, 2 * latent channels, h, w): means, then log variances."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x)), inplace=True))


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig, operations, **place):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = operations.Conv2d(config.latent_channels, widths[0], 3, padding=1, **place)
        self.mid_block = Level(widths[0], widths[0], 2, groups, operations, **place)
        self.up_blocks = nn.ModuleList(
            Level(a, b, config.layers_per_block + 1, groups, operations, **place)
            for a, b in zip((widths[0], *widths), widths)
        )
        for level in self.up_blocks[:-1]:
            width = level.resnets[-1].conv2.out_channels
            level.upsamplers = nn.ModuleList([Upsample(width, operations, **place)])
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=EPS, **place)
        self.conv_out = operations.Conv2d(widths[-1], config.out_channels, 3, padding=1, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, latent channels, h, w) -> (B, C, H, W)."""
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x), inplace=True))


class Vae(nn.Module):
    """`encode` and `decode` speak the VAE's own latents; the decoder's are `normalise`d by the checkpoint's figures."""

    def __init__(self, config: VaeConfig, *, operations=nn, dtype=None, device=None):
        super().__init__()
        place = {"dtype": dtype, "device": device}
        self.config = config
        self.encoder = Encoder(config, operations, **place)
        self.decoder = Decoder(config, operations, **place)
        self.apart = False  # whether the encoder lives in host memory

    def leave_on_host(self, device: torch.device) -> None:
        """From now on keep the encoder, whose weights are in host memory, there; it visits a device to encode."""
        self.apart = True

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in -1..1 -> (B, latent channels, h, w), the mode of the distribution."""
        with visiting((self.encoder,) if self.apart else (), pixels.device):
            return self.encoder(pixels)[:, : self.config.latent_channels]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, latent channels, h, w) -> (B, 3, H, W), about -1..1."""
        return torch.cat([self.decoder(row) for row in latents.split(1)])

    def decode_tiled(self, latents: torch.Tensor, rows: int = STRIP) -> torch.Tensor:
        """`decode` in strips of `rows` rows: the same picture up to rounding, in a quarter of the memory.

        Costs about a third more time, since upsampled activations are never kept but computed twice.
        """
        return torch.cat([vae_strips.decode(self.decoder, row, rows) for row in latents.split(1)])

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's latents -> mean 0 and deviation 1 a channel, as the decoder draws them."""
        mean, std = self._figures(latents)
        return (latents - mean) / std

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._figures(latents)
        return latents * std + mean

    def _figures(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        figures = torch.tensor([self.config.latents_mean, self.config.latents_std])
        mean, std = figures.to(like).view(2, 1, -1, 1, 1)
        return mean, std


def decode_nbytes(config: VaeConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that decoding one image of these pixels takes at its widest point, for an estimate beforehand."""
    return LIVE * max(config.block_out_channels[:2]) * height * width * dtype.itemsize
