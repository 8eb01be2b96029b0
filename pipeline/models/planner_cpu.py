"""The CPU decode fast path: one token of every plan, where calling an operator costs more than small ones compute.

It is `Planner.forward` with other roundings and half the calls: no modules, the rotation as one product for all
heads, keys and values sliced once for all layers, each half's sum taken inside its last norm.
Shapes: B plans, H hidden size, D head dim, R rotary channels of a head, N tokens to plan.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..devices import kernels
from .kv_cache import KVCache

LARGE = 1 << 19  # numbers of a matrix from which on oneDNN's own overhead of some 12 us is paid back
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

Product = Callable[[torch.Tensor], torch.Tensor]


class Layer(NamedTuple):
    """Norms (H,) and products of one layer."""

    input_norm: torch.Tensor
    qkv: Product
    out: Product
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: Product
    down: Product
    post_mlp_norm: torch.Tensor


class CpuDecode:
    """For one plan: `tables` are the cos and sin (B, 1, N, R) of its tokens. Weights are read, never copied."""

    def __init__(self, planner, cache: KVCache, tables: tuple[torch.Tensor, torch.Tensor]):
        model, text = planner.model.language_model, planner.config.text_config
        self.cache = cache
        self.embedding, self.norm = model.embed_tokens.weight, model.norm.weight
        self.layers, self.head = [_layer(layer) for layer in model.layers], product(planner.lm_head.weight)
        self.heads, self.kv_heads, self.head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        self.eps = text.rms_norm_eps
        self.cos, self.sin = (_padded(table, text.head_dim, rest) for table, rest in zip(tables, (1.0, 0.0)))
        self.straight, self.across = _rotation_parts(text.head_dim, tables[0].shape[-1])

    @staticmethod
    def suits(planner, device: torch.device) -> bool:
        """Whether a planner is `fuse`d and computes in float32 on a CPU, whose kernels have no other form."""
        fused = all(layer.self_attn.fused is not None for layer in planner.model.language_model.layers)
        plain = device.type == "cpu" and not kernels.registered_kernels("cpu")
        return fused and plain and planner.lm_head.weight.dtype == torch.float32

    def __call__(self, ids: torch.Tensor, k: int, mask: torch.Tensor | None, slot: int) -> torch.Tensor:
        """Ids (B,) of token `k` of the plan, whose keys go to `slot` -> (B, vision vocabulary) logits after it.

        `mask` (B, 1, 1, slot + 1) is True where a key may be seen; None sees all.
        """
        x = F.embedding(ids, self.embedding)
        rotation = torch.addcmul(self.straight * self.cos[k], self.across, self.sin[k])
        written = self.cache.slots.select(4, slot).flatten(0, 1).unbind()
        read = self.cache.slots.narrow(4, 0, slot + 1).flatten(0, 1).unbind()
        for i, layer in enumerate(self.layers):
            slots = (*written[2 * i : 2 * i + 2], *read[2 * i : 2 * i + 2])
            half = self._attention(self._normed(x, layer.input_norm), layer, rotation, slots, mask)
            x = torch.addcmul(x, kernels.unit_rms(half, self.eps), layer.attention_norm)
            gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
            half = layer.down(F.silu(gate).mul_(up))
            x = torch.addcmul(x, kernels.unit_rms(half, self.eps), layer.post_mlp_norm)
        return self.head(self._normed(x, self.norm))

    def _attention(self, x, layer: Layer, rotation, slots, mask) -> torch.Tensor:
        """(B, H) -> (B, H); `slots`: this token's key and value to write, and all keys and values to read."""
        key, value, keys, values = slots
        qkv = layer.qkv(x).view(len(x), -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        q, k = torch.bmm(qk, rotation).split((self.heads, self.kv_heads), dim=1)
        key.copy_(k)
        value.copy_(v)
        q = q.reshape(len(x), self.kv_heads, -1, self.head_dim)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return layer.out(out.reshape(len(x), -1))

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return kernels.unit_rms(x, self.eps).mul_(weight)


def product(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """(B, in) -> (B, out) by a matrix (out, in). BLAS multiplies few rows on one thread, oneDNN on all."""
    if ONEDNN and weight.numel() >= LARGE:
        return lambda x: ONEDNN(x, weight, bias, "none", [], "")
    matrix = weight.t()
    return (lambda x: torch.mm(x, matrix)) if bias is None else (lambda x: torch.addmm(bias, x, matrix))


def _layer(layer) -> Layer:
    return Layer(
        layer.input_layernorm.weight,
        product(*layer.self_attn.fused),
        product(layer.self_attn.o_proj.weight),
        layer.post_self_attn_layernorm.weight,
        layer.post_attention_layernorm.weight,
        product(layer.mlp.gate_up_proj.weight),
        product(layer.mlp.down_proj.weight),
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
