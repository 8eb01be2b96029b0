"""One token of every plan through the planner on a CPU, where calling an operator costs more than small ones compute.

It is `Planner.forward` with other roundings and half the calls: no modules, the rotation as one product for all
heads, keys and values sliced once for all layers, each half's sum taken inside its last norm.
Letters: B plans, H hidden size, D head dim, R rotary channels of a head, N tokens to plan.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import kernels
from .kv_cache import KVCache


class LayerWeights(NamedTuple):
    """Matrices (in, out), norms (H,)."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    post_mlp_norm: torch.Tensor


class TokenPass:
    """For one plan: `tables` are the cos and sin (B, 1, N, R) of its tokens. Weights are read, never copied."""

    def __init__(self, planner, cache: KVCache, tables: tuple[torch.Tensor, torch.Tensor]):
        model, text = planner.model.language_model, planner.config.text_config
        self.cache = cache
        self.embedding, self.norm, self.head = model.embed_tokens.weight, model.norm.weight, planner.lm_head
        self.layers = [_layer_weights(layer) for layer in model.layers]
        self.heads, self.kv_heads, self.head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        self.eps = text.rms_norm_eps
        self.cos, self.sin = (_padded(table, text.head_dim, rest) for table, rest in zip(tables, (1.0, 0.0)))
        self.straight, self.across = _rotation_parts(text.head_dim, tables[0].shape[-1])

    @staticmethod
    def suits(planner, device: torch.device) -> bool:
        """Whether a planner is `fuse`d and computes in float32 on a CPU, whose kernels have no other form."""
        fused = all(layer.self_attn.fused is not None for layer in planner.model.language_model.layers)
        plain = device.type == "cpu" and not kernels.forms("cpu")
        return fused and plain and planner.lm_head.weight.dtype == torch.float32

    def __call__(self, ids: torch.Tensor, k: int, mask: torch.Tensor | None, slot: int) -> torch.Tensor:
        """Ids (B,) of token `k` of the plan, whose keys go to `slot` -> (B, vision vocabulary) logits after it.

        `mask` (B, 1, 1, slot + 1) is True where a key may be seen; None sees all.
        """
        x = F.embedding(ids, self.embedding)
        rotation = torch.addcmul(self.straight * self.cos[k], self.across, self.sin[k])
        written = self.cache.slots.select(4, slot).flatten(0, 1).unbind()
        read = self.cache.slots.narrow(4, 0, slot + 1).flatten(0, 1).unbind()
        for i, weights in enumerate(self.layers):
            slots = (*written[2 * i : 2 * i + 2], *read[2 * i : 2 * i + 2])
            half = self._attention(self._normed(x, weights.input_norm), weights, rotation, slots, mask)
            x = torch.addcmul(x, kernels.unit_rms(half, self.eps), weights.attention_norm)
            half = _mlp(self._normed(x, weights.mlp_norm), weights)
            x = torch.addcmul(x, kernels.unit_rms(half, self.eps), weights.post_mlp_norm)
        return self.head(self._normed(x, self.norm))

    def _attention(self, x, weights: LayerWeights, rotation, slots, mask) -> torch.Tensor:
        """(B, H) -> (B, H); `slots`: this token's key and value to write, and all keys and values to read."""
        key, value, keys, values = slots
        qkv = torch.addmm(weights.bias, x, weights.qkv).view(len(x), -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = torch.bmm(qk, rotation).split((self.heads, self.kv_heads), dim=1)
        key.copy_(k)
        value.copy_(v)
        q = q.reshape(len(x), self.kv_heads, -1, self.head_dim)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return torch.mm(out.reshape(len(x), -1), weights.out)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return kernels.unit_rms(x, self.eps).mul_(weight)


def _mlp(x: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    gate, up = torch.mm(x, weights.gate_up).chunk(2, dim=-1)
    return torch.mm(F.silu(gate).mul_(up), weights.down)


def _layer_weights(layer) -> LayerWeights:
    qkv, bias = layer.self_attn.fused
    return LayerWeights(
        layer.input_layernorm.weight,
        qkv.t(),
        qkv.new_zeros(len(qkv)) if bias is None else bias,
        layer.self_attn.o_proj.weight.t(),
        layer.post_self_attn_layernorm.weight,
        layer.post_attention_layernorm.weight,
        layer.mlp.gate_up_proj.weight.t(),
        layer.mlp.down_proj.weight.t(),
        layer.post_mlp_layernorm.weight,
    )


def _padded(table: torch.Tensor, head_dim: int, value: float) -> tuple[torch.Tensor, ...]:
    """(B, 1, N, R) -> N times (B, 1, D), `value` for the channels that do not rotate."""
    return F.pad(table, (0, head_dim - table.shape[-1]), value=value).unbind(2)


def _rotation_parts(head_dim: int, rotary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, D) matrices such that x @ (straight * cos + across * sin) turns channel i against channel i + R/2."""
    straight, across = torch.eye(head_dim), torch.zeros(head_dim, head_dim)
    low = torch.arange(rotary // 2)
    across[low + rotary // 2, low] = -1.0
    across[low, low + rotary // 2] = 1.0
    return straight, across
