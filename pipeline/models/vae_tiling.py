"""The VAE's decoder in strips of rows, exact: every convolution sees its neighbouring rows, every norm the whole image.

An activation is a tensor, or an `Upsampled`, which keeps the smaller tensor and computes rows when asked. The widest
activations of a decoder are upsampled ones, so they never exist as a whole.
Letters: B batch, C channels, H W the activation's rows and columns, G groups of a norm.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Upsampled:
    """What an upsampling layer makes of `source` (B, C, H/2, W/2)."""

    layer: nn.Module
    source: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, _, height, width = self.source.shape
        return batch, self.layer.conv.out_channels, 2 * height, 2 * width

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """(B, C, stop - start, W); even numbers of rows are cheapest."""
        first, last = max(start // 2 - 1, 0), min((stop + 1) // 2 + 1, self.source.shape[2])
        made = self.layer(self.source[:, :, first:last])
        return made[:, :, start - 2 * first : stop - 2 * first]


Activation = torch.Tensor | Upsampled


def decode(decoder: nn.Module, latents: torch.Tensor, rows: int) -> torch.Tensor:
    """`decoder(latents)`, (B, C, h, w) -> (B, 3, H, W), with at most `rows` rows in work at once."""
    x: Activation = decoder.conv_in(latents)
    for level in (decoder.mid_block, *decoder.up_blocks):
        for block in level.resnets:
            x = _resnet(block, x, rows)
        for layer in getattr(level, "upsamplers", ()):
            x = Upsampled(layer, x)
    return _norm_conv(decoder.conv_norm_out, decoder.conv_out, x, rows)


def _resnet(block: nn.Module, x: Activation, rows: int) -> torch.Tensor:
    hidden = _norm_conv(block.norm1, block.conv1, x, rows)
    out = _norm_conv(block.norm2, block.conv2, hidden, rows)
    for start, stop in _strips(x, rows):
        part = _rows(x, start, stop)
        out[:, :, start:stop] += block.conv_shortcut(part) if hasattr(block, "conv_shortcut") else part
    return out


def _norm_conv(norm: nn.GroupNorm, conv: nn.Conv2d, x: Activation, rows: int) -> torch.Tensor:
    """Group norm, SiLU and a 3x3 convolution."""
    scale, shift = _affine(norm, x, rows)
    batch, _, height, width = x.shape
    out = scale.new_empty(batch, conv.out_channels, height, width)
    for start, stop in _strips(x, rows):
        above, below = max(start - 1, 0), min(stop + 1, height)
        part = F.silu(torch.addcmul(shift, _rows(x, above, below), scale), inplace=True)
        made = conv(part)  # its own zero padding is right at the image's border, and cut off elsewhere
        out[:, :, start:stop] = made[:, :, start - above : stop - above]
    return out


def _affine(norm: nn.GroupNorm, x: Activation, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A group norm over the whole image as a scale and a shift for each channel, (B, C, 1, 1) each."""
    count, mean, spread = 0, 0.0, 0.0  # spread: sum of squared distances to the mean
    for start, stop in _strips(x, rows):
        part = _rows(x, start, stop).float().unflatten(1, (norm.num_groups, -1)).flatten(2)  # (B, G, n)
        own_var, own_mean = torch.var_mean(part, dim=2, correction=0)
        n, delta = part.shape[2], own_mean - mean
        mean = mean + delta * (n / (count + n))
        spread = spread + own_var * n + delta.square() * (count * n / (count + n))
        count += n
    per_channel = norm.num_channels // norm.num_groups
    deviation = torch.rsqrt(spread / count + norm.eps)
    scale = norm.weight.float() * deviation.repeat_interleave(per_channel, 1)
    shift = norm.bias.float() - mean.repeat_interleave(per_channel, 1) * scale
    return scale.to(norm.weight.dtype)[..., None, None], shift.to(norm.weight.dtype)[..., None, None]


def _rows(x: Activation, start: int, stop: int) -> torch.Tensor:
    return x.rows(start, stop) if isinstance(x, Upsampled) else x[:, :, start:stop]


def _strips(x: Activation, rows: int) -> Iterator[tuple[int, int]]:
    height = x.shape[2]
    return ((start, min(start + rows, height)) for start in range(0, height, rows))
