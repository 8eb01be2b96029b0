"""The two fused attentions of CANN."""

import torch

from .table import Table, optional, put, wide

table = Table()
kernel = table.kernel
COMPRESSED_CAUSAL = {2: "left-up", 3: "right-down"}  # sparse modes whose mask is a fixed 2048 x 2048 triangle


def split_heads(x: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    """Any layout -> float32 (B, heads, L, D)."""
    if layout in ("BSH", "SBH"):
        x = x.unflatten(-1, (heads, -1))
    if layout == "SBH":
        x = x.transpose(0, 1)
    return wide(x if layout.startswith("BNSD") else x.transpose(1, 2))


def merge_heads(x: torch.Tensor, layout: str) -> torch.Tensor:
    """(B, heads, L, D) -> the layout's order; `put` flattens the heads of BSH."""
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2)
    return x.transpose(0, 1) if layout == "SBH" else x


def scores(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    return query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * scale


def weighted(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return weights.softmax(-1) @ value.repeat_interleave(weights.shape[1] // value.shape[1], 1)


def causal_mask(queries: int, keys: int, sparse_mode: int) -> torch.Tensor:
    """True where attention is forbidden."""
    diagonal = 1 if COMPRESSED_CAUSAL[sparse_mode] == "left-up" else keys - queries + 1
    return torch.ones(queries, keys, dtype=torch.bool, device="cpu").triu(diagonal)


def attend(q, k, v, bias, mask, scale, heads: int, layout: str, sparse: int) -> torch.Tensor:
    """The training attention in any layout, in float32."""
    width = q.shape[-1] // heads if layout in ("BSH", "SBH") else 1
    groups_of = k.shape[-1] // width
    query, key, value = (split_heads(x, layout, h) for x, h in ((q, heads), (k, groups_of), (v, groups_of)))
    weights = scores(query, key, scale)
    if optional(bias) is not None:
        weights = weights + wide(bias)
    if optional(mask) is not None:
        if sparse in COMPRESSED_CAUSAL:
            mask = causal_mask(query.shape[2], key.shape[2], sparse)
        weights = weights.masked_fill(mask.bool(), float("-inf"))
    return merge_heads(weighted(weights, value), layout)


@kernel("FlashAttentionScore", reals=True)
def flash_attention(reals, q, k, v, bias, drop, pad, mask, prefix, before, after, heads, layout, inner, sparse, *rest):
    put(rest[-1], attend(q, k, v, bias, mask, reals[0], heads, layout, sparse))


@kernel("FusedInferAttentionScoreV2", "FusedInferAttentionScoreV3", reals=True)
def infer_attention(reals, q, keys, values, bias, mask, query_lengths, key_lengths, *rest):
    """rest[17], rest[20]: the query heads and the layout; the last but one is the output."""
    heads, layout = rest[17], rest[20]
    width = q.shape[-1] // heads if layout == "BSH" else 1
    groups_of = keys[0].shape[-1] // width
    query = split_heads(q, layout, heads)
    key, value = (split_heads(x[0], layout, groups_of) for x in (keys, values))
    weights = scores(query, key, reals[0])
    if optional(mask) is not None:
        weights = weights.masked_fill(mask.bool(), float("-inf"))
    if isinstance(key_lengths, list) and key_lengths:
        lengths = torch.tensor(key_lengths, device="cpu").expand(weights.shape[0])[:, None, None, None]
        weights = weights.masked_fill(torch.arange(weights.shape[-1], device="cpu") >= lengths, float("-inf"))
    put(rest[-2], merge_heads(weighted(weights, value), layout.split("_")[-1]))
