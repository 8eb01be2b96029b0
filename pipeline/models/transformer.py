"""The diffusion transformer: latents, glyphs and prior tokens -> the velocity of the latents.

Follows diffusers `transformer_glm_image.py` v0.42.1. It differs in when things are computed: `prepare` does once a
run what does not depend on the step (glyph and prior projections, rotary tables, masks), `modulations` does once a
schedule what depends on the timestep only, `step` does the rest. Masks are boolean. Text and image tokens share one
matrix product wherever they share weights.
Shapes: B batch, L glyph tokens, N image tokens (patches), H heads, D head dim, C = H*D channels, h w patch grid.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ..devices.kernels import attention, gelu, gelu_tanh, modulated_norm, rope
from ..geometry import LATENT
from .config import DitConfig
from .transformer_context import Context, FirstBlockCache, Modulations, ReferenceCache, joint_mask, rotary_tables

EPS = 1e-5  # of every norm here; the reference fixes it in code


class FeedForward(nn.Module):
    """Two linear layers under diffusers' keys `net.0.proj` and `net.2`; `net.1` is its dropout's empty slot."""

    def __init__(self, channels, inner, out, activation, operations, **place):
        super().__init__()
        self.activation = activation
        first = nn.Module()
        first.proj = operations.Linear(channels, inner, **place)
        self.net = nn.ModuleList([first, nn.Identity(), operations.Linear(inner, out, **place)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.activation(self.net[0].proj(x)))


class SizeTimeEmbedding(nn.Module):
    """Sines of timestep, crop and size -> the conditioning vector of every modulation."""

    def __init__(self, config: DitConfig, operations, **place):
        super().__init__()
        self.time_channels, self.size_channels = config.time_embed_dim, config.condition_dim
        width = config.time_embed_dim
        self.timestep_embedder = nn.Module()
        self.timestep_embedder.linear_1 = operations.Linear(width, width, **place)
        self.timestep_embedder.linear_2 = operations.Linear(width, width, **place)
        self.condition_embedder = nn.Module()
        self.condition_embedder.linear_1 = operations.Linear(4 * config.condition_dim, width, **place)
        self.condition_embedder.linear_2 = operations.Linear(width, width, **place)

    def forward(self, timestep, target_size, crop_coords, dtype) -> torch.Tensor:
        """(S,) times, (S or 1, 2) pixels (h, w) twice -> (S, time_embed_dim)."""
        sizes = torch.cat((crop_coords, target_size), dim=1)
        sizes = sinusoid(sizes.flatten(), self.size_channels).view(sizes.shape[0], -1)
        time = _two_layers(self.timestep_embedder, sinusoid(timestep, self.time_channels).to(dtype))
        return F.silu(time + _two_layers(self.condition_embedder, sizes.to(dtype)))


class Attention(nn.Module):
    """Joint attention over glyph and image tokens; q and k are layer-normed per head without weights."""

    def __init__(self, config: DitConfig, operations, **place):
        super().__init__()
        self.heads = config.num_attention_heads
        channels = config.inner_dim
        self.to_q = operations.Linear(channels, channels, **place)
        self.to_k = operations.Linear(channels, channels, **place)
        self.to_v = operations.Linear(channels, channels, **place)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **place), nn.Identity()])

    def keys_values(self, x: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L + N, C) -> keys with positions and values, (B, H, L + N, D) each."""
        return self._apply_rope(self.to_k(x), context), self._split(self.to_v(x))

    def forward(self, x, keys, values, context: Context) -> torch.Tensor:
        """Queries from `x` (B, L + N, C) over keys and values that may be longer -> (B, L + N, C)."""
        queries = self._apply_rope(self.to_q(x), context)
        if context.patches is None:
            out = attention(queries, keys, values, context.mask)
        else:
            out = context.patches.attention(queries, keys, values, context.mask, attention)
        return self.to_out[0](out.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _apply_rope(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        x = x.unflatten(-1, (self.heads, -1))
        return rope(F.layer_norm(x, x.shape[-1:], eps=EPS).transpose(1, 2), context.cos, context.sin)


class Block(nn.Module):
    """Attention and feed-forward, each modulated for image and glyph tokens apart."""

    def __init__(self, config: DitConfig, operations, **place):
        super().__init__()
        channels = config.inner_dim
        self.norm1 = nn.Module()
        self.norm1.linear = operations.Linear(config.time_embed_dim, 12 * channels, **place)
        self.attn1 = Attention(config, operations, **place)
        self.ff = FeedForward(channels, 4 * channels, channels, gelu_tanh, operations, **place)

    def modulation(self, embedding: torch.Tensor) -> torch.Tensor:
        """(S, time_embed_dim) -> (S, 12, C): shift, scale, gate of attention, then of feed-forward, image before glyph.

        One is added to the scales here, once.
        """
        table = self.norm1.linear(embedding).unflatten(-1, (12, -1))
        table[:, 2:4] += 1
        table[:, 8:10] += 1
        return table

    def modulate(self, glyphs, image, modulation, first: int) -> torch.Tensor:
        """Normed and modulated tokens, glyphs then image: (B, L + N, C). `first` is 0 (attention) or 6."""
        image = modulated_norm(image, modulation[:, first + 2], modulation[:, first], EPS)
        if not glyphs.shape[1]:
            return image
        glyphs = modulated_norm(glyphs, modulation[:, first + 3], modulation[:, first + 1], EPS)
        return torch.cat((glyphs, image), dim=1)

    def forward(
        self, glyphs, image, modulation, context: Context, reference=None, record: ReferenceCache | None = None
    ):
        """(B, L, C), (B, N, C) -> the same; sees the `reference` keys and values, adds its own to `record`."""
        seen = self._attend(self.modulate(glyphs, image, modulation, 0), context, reference, record)
        glyphs, image = _add_gated(glyphs, image, seen, modulation, 4)
        del seen  # the feed-forward is the widest moment of a block
        change = self.ff(self.modulate(glyphs, image, modulation, 6))
        return _add_gated(glyphs, image, change, modulation, 10)

    def _attend(self, x, context: Context, reference, record: ReferenceCache | None) -> torch.Tensor:
        """(B, L + N, C) -> the same; its keys and values are freed on return."""
        keys, values = self.attn1.keys_values(x, context)
        if record is not None:
            record.keys.append(keys)
            record.values.append(values)
        if reference is not None:
            keys, values = (_prepend(r, own) for r, own in zip(reference, (keys, values)))
        return self.attn1(x, keys, values, context)


class Dit(nn.Module):
    """GLM-Image's decoder. `forward` is one whole pass; a run calls `prepare`, `modulations`, then `step`s."""

    def __init__(self, config: DitConfig, *, operations=nn, dtype=None, device=None):
        super().__init__()
        place = {"dtype": dtype, "device": device}
        self.config = config
        channels, patch = config.inner_dim, config.patch_size**2
        self.image_projector = nn.Module()
        self.image_projector.proj = operations.Linear(config.in_channels * patch, channels, **place)
        self.glyph_projector = FeedForward(config.text_embed_dim, channels, channels, gelu, operations, **place)
        self.prior_token_embedding = operations.Embedding(config.prior_vq_quantizer_codebook_size, channels, **place)
        self.prior_projector = FeedForward(channels, channels, channels, F.silu, operations, **place)
        self.time_condition_embed = SizeTimeEmbedding(config, operations, **place)
        self.transformer_blocks = nn.ModuleList([Block(config, operations, **place) for _ in range(config.num_layers)])
        self.norm_out = nn.Module()
        self.norm_out.linear = operations.Linear(config.time_embed_dim, 2 * channels, **place)
        self.proj_out = operations.Linear(channels, patch * config.out_channels, **place)

    def forward(
        self,
        latents: torch.Tensor,
        glyph_embeds: torch.Tensor,
        prior_token_ids: torch.Tensor,
        prior_token_drop: torch.Tensor | bool,
        timestep: torch.Tensor,
        target_size: torch.Tensor,
        crop_coords: torch.Tensor,
        *,
        glyph_mask: torch.Tensor | None = None,
        glyph_visible: torch.Tensor | None = None,
        references: ReferenceCache | None = None,
    ) -> torch.Tensor:
        """(B, in_channels, H/8, W/8) latents at (B,) times -> velocity of the same shape, all in one call.

        `target_size` and `crop_coords` are (B, 2) pixels (h, w); the rest is as in `prepare`.
        """
        context = self.prepare(
            glyph_embeds,
            prior_token_ids,
            self.grid(latents),
            prior_token_drop=prior_token_drop,
            glyph_mask=glyph_mask,
            glyph_visible=glyph_visible,
            references=references,
        )
        return self.step(latents, self.modulations(timestep, target_size, crop_coords, latents.dtype), context)

    def compile_blocks(self) -> None:
        """From now on run the blocks by torch.compile: the first step, and the first of another size, take longer."""
        for block in self.transformer_blocks:
            block.compile()

    def grid(self, latents: torch.Tensor) -> tuple[int, int]:
        """(h, w) patches of latents."""
        return latents.shape[-2] // self.config.patch_size, latents.shape[-1] // self.config.patch_size

    def prepare(
        self,
        glyph_embeds: torch.Tensor,
        prior_token_ids: torch.Tensor,
        grid: tuple[int, int],
        *,
        prior_token_drop: torch.Tensor | bool = False,
        glyph_mask: torch.Tensor | None = None,
        glyph_visible: torch.Tensor | None = None,
        references: ReferenceCache | None = None,
        repeats: int = 1,
    ) -> Context:
        """Everything of a run that no step changes.

        `glyph_embeds` (B, L, text_embed_dim); `prior_token_ids` (B, h*w), one a patch; `prior_token_drop`, like the
        ids or one bool for all, zeroes the prior (the unconditional pass). `glyph_mask` (B, L) is True for real
        tokens. `glyph_visible` (B or 1, h*w, L) is True where an image token may see a glyph token. `repeats` says that
        ids are the same in squares of so many patches, as a plan's in 2, so that each is projected once.
        """
        cos, sin = rotary_tables(self.config.attention_head_dim, grid, glyph_embeds.shape[1])
        context = Context(
            self.glyph_projector(glyph_embeds),
            self._prior(prior_token_ids, grid, prior_token_drop, glyph_embeds.dtype, repeats),
            grid,
            cos.to(glyph_embeds.device),
            sin.to(glyph_embeds.device),
            glyph_mask=glyph_mask,
            glyph_visible=glyph_visible,
            references=references,
        )
        return replace(context, mask=joint_mask(context))

    def modulations(self, timesteps, target_size, crop_coords, dtype) -> Modulations:
        """(S,) times, (S or 1, 2) sizes and crops -> the modulations of S steps (or of S rows of a batch)."""
        embedding = self.time_condition_embed(timesteps, target_size, crop_coords, dtype)
        out = self.norm_out.linear(embedding).unflatten(-1, (2, -1))
        out[:, 0] += 1
        return Modulations([block.modulation(embedding) for block in self.transformer_blocks], out)

    def step(
        self, latents: torch.Tensor, modulations: Modulations, context: Context, cache: FirstBlockCache | None = None
    ) -> torch.Tensor:
        """(B, in_channels, H/8, W/8) -> velocity of the same shape. `modulations` has one row, or one a sample."""
        if cache is None:  # names here would keep alive what the blocks are done with
            image = self._blocks(0, context.glyphs, self._image_tokens(latents, context), modulations, context)
        else:
            image = self._cached_blocks(cache, self._image_tokens(latents, context), modulations, context)
        image = modulated_norm(image, modulations.out[:, 0], modulations.out[:, 1], EPS)
        return unpatchify(self.proj_out(image), context.grid, self.config.patch_size)

    def encode_reference(self, latents: torch.Tensor, prior_token_ids: torch.Tensor) -> ReferenceCache:
        """Keys and values of one reference: (B, in_channels, h, w) normalised latents with their own (B, N) tokens.

        Runs at timestep 0 with no glyphs. Several references of an image: encode each, then `ReferenceCache.join`.
        """
        no_glyphs = latents.new_zeros(latents.shape[0], 0, self.config.text_embed_dim)
        context = self.prepare(no_glyphs, prior_token_ids, self.grid(latents))
        size = torch.tensor([[float(LATENT * side) for side in latents.shape[-2:]]], device=latents.device)
        zero = torch.zeros_like(size)
        modulations = self.modulations(zero[:, 0], size, zero, latents.dtype)
        glyphs, image, record = context.glyphs, self._image_tokens(latents, context), ReferenceCache([], [])
        for block, modulation in zip(self.transformer_blocks, modulations.layers):
            glyphs, image = block(glyphs, image, modulation, context, record=record)
        return record

    def _image_tokens(self, latents: torch.Tensor, context: Context) -> torch.Tensor:
        return self.image_projector.proj(patchify(latents, self.config.patch_size)) + context.prior

    def _prior(self, ids, grid: tuple[int, int], drop: torch.Tensor | bool, dtype, repeats: int) -> torch.Tensor:
        if drop is True:  # every token projects the same zeros: one row stands for all
            zeros = torch.zeros(1, 1, self.config.inner_dim, dtype=dtype, device=ids.device)
            return self.prior_projector(zeros)
        if drop is False and repeats > 1:
            each = ids.unflatten(1, grid)[:, ::repeats, ::repeats]
            prior = self.prior_projector(self.prior_token_embedding(each).to(dtype))
            return prior.repeat_interleave(repeats, 1).repeat_interleave(repeats, 2).flatten(1, 2)
        embedding = self.prior_token_embedding(ids).to(dtype)
        if drop is not False:
            embedding = embedding.masked_fill(drop.unsqueeze(-1), 0)
        return self.prior_projector(embedding)

    def _blocks(self, first: int, glyphs, image, modulations: Modulations, context: Context) -> torch.Tensor:
        """The image tokens after block `first` and all later ones."""
        for layer in range(first, len(self.transformer_blocks)):
            glyphs, image = self._block(layer, glyphs, image, modulations, context)
        return image

    def _block(self, layer: int, glyphs, image, modulations: Modulations, context: Context):
        block, modulation = self.transformer_blocks[layer], modulations.layers[layer]
        if context.patches is None:
            return block(glyphs, image, modulation, context, context.reference(layer))

        def run(glyphs, image, modulation):
            return block(glyphs, image, modulation, context, context.reference(layer))

        return context.patches.block(layer, len(self.transformer_blocks), run, glyphs, image, modulation)

    def _cached_blocks(self, cache: FirstBlockCache, image, modulations: Modulations, context: Context) -> torch.Tensor:
        glyphs, first = self._block(0, context.glyphs, image, modulations, context)
        residual = first - image
        if cache.may_reuse(residual):
            return first + cache.rest
        out = self._blocks(1, glyphs, first, modulations, context)
        cache.first, cache.rest = residual, out - first
        return out


def _prepend(reference: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat((reference.expand(own.shape[0], -1, -1, -1), own), dim=2)


def _add_gated(glyphs, image, change, modulation, gate: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the (B, L + N, C) change, gated by rows `gate` (image) and `gate` + 1 (glyphs) of the modulation."""
    length = glyphs.shape[1]
    image = torch.addcmul(image, change[:, length:], modulation[:, gate, None])
    if length:
        glyphs = torch.addcmul(glyphs, change[:, :length], modulation[:, gate + 1, None])
    return glyphs, image


def _two_layers(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.linear_2(F.silu(module.linear_1(x)))


def sinusoid(values: torch.Tensor, channels: int) -> torch.Tensor:
    """(n,) numbers -> float32 (n, channels): cosines, then sines, of falling frequency."""
    half = channels // 2
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * exponent.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def patchify(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, h*p, w*p) -> (B, h*w, C*p*p)."""
    batch, channels, height, width = latents.shape
    x = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(tokens: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """(B, h*w, C*p*p) -> (B, C, h*p, w*p)."""
    x = tokens.reshape(tokens.shape[0], *grid, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
