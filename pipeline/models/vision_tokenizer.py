"""Vision tokenizer: a ViT over 16 px patches of the half-size image, then the nearest codebook entry by cosine.

Follows transformers 5.23 `modeling_glm_image.py`. What differs: images go one by one, and the codebook search runs
in float32 whatever the weights' dtype, so that devices agree on near ties.
Letters: h w patch grid (32 px of the reference image each), C hidden size, S side of the learned position table.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..devices import kernels
from .config import VisionConfig, VQConfig

SEARCH_ROWS = 1024  # patches compared with the codebook at once: 64 MB of scores for 16384 entries
SHORTEST = 1e-12  # length of a codebook entry, as in F.normalize


class PatchEmbed(nn.Module):
    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        patch = config.patch_size
        self.proj = operations.Conv2d(config.in_channels, config.hidden_size, patch, stride=patch, **factory)


class Embeddings(nn.Module):
    """A learned S x S position table, sampled bilinearly to any grid."""

    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.position_embedding = operations.Embedding(self.side**2, config.hidden_size, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C, h, w) patches -> the same with positions added."""
        table = all_rows(self.position_embedding, x.device)
        table = table.T.unflatten(1, (self.side, self.side))[None]
        # Half-pixel centres with the border repeated, as grid_sample(align_corners=False, padding_mode="border").
        positions = F.interpolate(table.float(), x.shape[-2:], mode="bilinear", align_corners=False)
        return x + positions.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        self.heads = config.num_heads
        width, bias = config.hidden_size, config.attention_bias
        self.qkv = operations.Linear(width, 3 * width, bias=bias, **factory)
        self.proj = operations.Linear(width, width, bias=bias, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, h*w, C) -> (1, h*w, C); every patch sees every patch."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(kernels.attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        self.fc1 = operations.Linear(config.hidden_size, config.intermediate_size, **factory)
        self.fc2 = operations.Linear(config.intermediate_size, config.hidden_size, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(kernels.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        self.norm1 = operations.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, **factory)
        self.norm2 = operations.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, **factory)
        self.attn = Attention(config, operations=operations, **factory)
        self.mlp = MLP(config, operations=operations, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionModel(nn.Module):
    def __init__(self, config: VisionConfig, *, operations=nn, **factory):
        super().__init__()
        self.embeddings = Embeddings(config, operations=operations, **factory)
        self.patch_embed = PatchEmbed(config, operations=operations, **factory)
        self.blocks = nn.ModuleList(Block(config, operations=operations, **factory) for _ in range(config.depth))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, 16h, 16w) normalised pixels -> (1, C, h, w) features."""
        x = self.embeddings(self.patch_embed.proj(pixels[None]))
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, grid)


class VectorQuantizer(nn.Module):
    def __init__(self, config: VQConfig, *, operations=nn, **factory):
        super().__init__()
        self.embedding = operations.Embedding(config.num_embeddings, config.embed_dim, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, embed_dim) -> (n,) index of the codebook entry of the smallest angle."""
        codebook = all_rows(self.embedding, x.device).float()
        # Dividing the codebook instead would copy it: 128 MB of the release.
        lengths = torch.linalg.vector_norm(codebook, dim=-1).clamp_min(SHORTEST)
        parts = math.ceil(len(x) / SEARCH_ROWS)
        return torch.cat([(part.float() @ codebook.T).div_(lengths).argmax(dim=-1) for part in x.chunk(parts)])


class VQModel(nn.Module):
    """`post_quant_conv` belongs to the checkpoint; planning never runs it."""

    def __init__(self, config: VQConfig, *, operations=nn, **factory):
        super().__init__()
        self.quantize = VectorQuantizer(config, operations=operations, **factory)
        self.quant_conv = operations.Conv2d(config.latent_channels, config.embed_dim, 1, **factory)
        self.post_quant_conv = operations.Conv2d(config.embed_dim, config.latent_channels, 1, **factory)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(1, C, h, w) features -> (h*w,) codebook ids in row order."""
        return self.quantize(self.quant_conv(features).flatten(2)[0].T)


def all_rows(embedding: nn.Embedding, device: torch.device) -> torch.Tensor:
    """(entries, width): the table itself, or what a layer that brings its weights from elsewhere makes of it.

    Looking all rows up would copy the table, which took a third of the time of a small image on a CPU.
    """
    if type(embedding) is nn.Embedding:
        return embedding.weight
    return embedding(torch.arange(embedding.num_embeddings, device=device))
