"""The glyph encoder: the texts to be drawn, as UTF-8 bytes, through a T5 encoder.

Follows transformers `modeling_t5.py` v5.23 (encoder, gated GELU) and `_get_glyph_embeds` of diffusers v0.42.1.
Letters: n strings, B prompts, L bytes, H heads, D head dim, C width.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from ..devices.kernels import attention, gelu_tanh, rms_norm
from ..text import MAX_TEXT, check_texts, utf8
from .config import GlyphConfig

BYTE_OFFSET = 3  # ids 0, 1, 2 are padding, end and unknown
NAMED = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"<extra_id_{i}>": BYTE_OFFSET + 256 + i for i in range(125)}}
# As `ByT5Tokenizer` of transformers 5.23 reads them: the first three take the spaces around them away.
NAMED_IN_TEXT = re.compile(r"\s*(<pad>|</s>|<unk>)\s*|(<extra_id_(?:\d|[1-9]\d|1[01]\d|12[0-4])>)")


class Norm(nn.Module):
    """RMS norm by the checkpoint's weight; through `operations` so that the weight is cast and moved with the rest."""

    def __init__(self, channels: int, eps: float, operations, **place):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, **place))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Attention without scaling; the first layer's `relative_attention_bias` serves all layers."""

    def __init__(self, config: GlyphConfig, first: bool, operations, **place):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q = operations.Linear(config.d_model, inner, bias=False, **place)
        self.k = operations.Linear(config.d_model, inner, bias=False, **place)
        self.v = operations.Linear(config.d_model, inner, bias=False, **place)
        self.o = operations.Linear(inner, config.d_model, bias=False, **place)
        if first:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = operations.Embedding(buckets, config.num_heads, **place)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    def __init__(self, config: GlyphConfig, operations, **place):
        super().__init__()
        self.wi_0 = operations.Linear(config.d_model, config.d_ff, bias=False, **place)
        self.wi_1 = operations.Linear(config.d_model, config.d_ff, bias=False, **place)
        self.wo = operations.Linear(config.d_ff, config.d_model, bias=False, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class Block(nn.Module):
    def __init__(self, config: GlyphConfig, first: bool, operations, **place):
        super().__init__()
        self.layer = nn.ModuleList([nn.Module(), nn.Module()])
        self.layer[0].SelfAttention = SelfAttention(config, first, operations, **place)
        self.layer[1].DenseReluDense = GatedGelu(config, operations, **place)
        for half in self.layer:
            half.layer_norm = Norm(config.d_model, config.layer_norm_epsilon, operations, **place)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x + self.layer[0].SelfAttention(self.layer[0].layer_norm(x), bias)
        return x + self.layer[1].DenseReluDense(self.layer[1].layer_norm(x))


class GlyphEncoder(nn.Module):
    """T5 encoder over bytes. A T5 file may hold its one embedding under two names; `aliases` maps the second."""

    aliases = {"encoder.embed_tokens.weight": "shared.weight"}

    def __init__(self, config: GlyphConfig, *, operations=nn, dtype=None, device=None):
        super().__init__()
        place = {"dtype": dtype, "device": device}
        self.config = config
        self.shared = operations.Embedding(config.vocab_size, config.d_model, **place)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(
            [Block(config, layer == 0, operations, **place) for layer in range(config.num_layers)]
        )
        self.encoder.final_layer_norm = Norm(config.d_model, config.layer_norm_epsilon, operations, **place)
        self.register_load_state_dict_pre_hook(_merge_aliases)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, L) ids and boolean mask of real ones -> (n, L, C)."""
        x = self.shared(ids)
        bias = self._position_bias(ids.shape[1], ids.device).to(x.dtype)
        bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(x.dtype).min)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)

    def where(self) -> torch.device:
        """The device it computes on."""
        return next(self.parameters()).device

    def embed(self, texts: list[str], named: bool = False) -> torch.Tensor:
        """The glyph texts of one prompt -> (1, L, C): every string's outputs one after the other, without padding.

        `named` is as in `glyph_ids`.
        """
        ids, mask = glyph_batch(texts, self.config, named)
        where = mask.flatten().nonzero().squeeze(1)  # on the CPU, so that the device is not waited for
        device = self.where()
        out = self(ids.to(device), mask.to(device))
        return out.flatten(0, 1).index_select(0, where.to(device))[None]

    def embed_batch(self, texts: list[list[str]], named: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Glyph texts of B prompts -> (B, L, C) padded on the left, and its (B, L) mask, None when all are as long."""
        return pad_glyphs([self.embed(strings, named) for strings in texts])

    def _position_bias(self, length: int, device: torch.device) -> torch.Tensor:
        """(1, H, L, L): one learned number for every distance bucket and head."""
        position = torch.arange(length)
        buckets = distance_buckets(
            position[None] - position[:, None],
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        embedding = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        return embedding(buckets.to(device)).permute(2, 0, 1)[None]


def _merge_aliases(module, state, prefix, *_):
    """Keep one copy of the embedding, under the name this module has."""
    for alias, name in module.aliases.items():
        if prefix + alias in state:
            state.setdefault(prefix + name, state[prefix + alias])
            del state[prefix + alias]


def glyph_ids(texts: list[str], config: GlyphConfig, named: bool = False) -> list[list[int]]:
    """Strings -> byte ids, each ended; an even number of strings puts one padding id before each.

    The reference does so, and counts it as a real token. With `named`, texts that spell a token of ByT5's own, such as
    "</s>", become that one token as in the reference; without, their letters are drawn.
    """
    check_texts(texts)
    prefix = [config.pad_token_id] * ((len(texts) + 1) % 2)
    read = _with_named if named else _bytes
    rows = [read(text)[: MAX_TEXT - 1] for text in texts]
    return [prefix + row + [config.eos_token_id] * (row[-1:] != [config.eos_token_id]) for row in rows]


def _bytes(text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in utf8(text)]


def _with_named(text: str) -> list[int]:
    ids, end = [], 0
    for found in NAMED_IN_TEXT.finditer(text):
        ids += _bytes(text[end : found.start()]) + [NAMED[found[1] or found[2]]]
        end = found.end()
    return ids + _bytes(text[end:])


def glyph_batch(texts: list[str], config: GlyphConfig, named: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of one prompt -> (n, L) ids and boolean mask of the real ones; no text is one empty text."""
    rows = [torch.tensor(row) for row in glyph_ids(texts or [""], config, named)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])


def pad_glyphs(embeds: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(1, L, C) embeddings of B prompts -> (B, longest, C) padded on the left, and a boolean mask if one is needed."""
    longest = max(embed.shape[1] for embed in embeds)
    batch = torch.cat([F.pad(embed, (0, 0, longest - embed.shape[1], 0)) for embed in embeds])
    if all(embed.shape[1] == longest for embed in embeds):
        return batch, None
    starts = torch.tensor([[longest - embed.shape[1]] for embed in embeds])
    return batch, (torch.arange(longest) >= starts).to(batch.device)


def distance_buckets(distance: torch.Tensor, buckets: int, farthest: int) -> torch.Tensor:
    """Signed distances in tokens -> bucket ids, half of them for later tokens; near ones exact, far ones by log."""
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.float() / exact) / math.log(farthest / exact) * (half - exact)
    far = (exact + far.clamp(min=0).to(torch.long)).clamp(max=half - 1)
    return (distance > 0).to(torch.long) * half + torch.where(size < exact, size, far)
