"""The CPU decode fast path: one token of every plan or a few, where calls cost more than small operators compute.

It is `Planner.forward` with other roundings and half the calls: no modules, the rotation as one product for all
heads, keys and values sliced once for all layers, each half's sum taken inside its last norm.
Shapes: B plans, n rows of all plans, H hidden size, D head dim, R rotary channels of a head, N tokens to plan.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..devices import kernels
from ..devices.plain_kernels import unit_rms
from .kv_cache import KVCache
from .weight_forms import CodedLinear, W8Linear

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
        self.embedding, self.norm = model.embed_tokens.weight, model.norm.weight.float()
        self.layers, self.head = [_layer(layer) for layer in model.layers], _product_of(planner.lm_head)
        self.heads, self.kv_heads, self.head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
        self.eps = text.rms_norm_eps
        cos, sin = (_padded(table, text.head_dim, rest) for table, rest in zip(tables, (1.0, 0.0)))
        self.cos, self.sin = cos.unbind(2), sin.unbind(2)
        self.flat = torch.cat((cos, sin), dim=-1).flatten(0, 2)[:, None]  # (B * N, 1, 2D)
        self.straight, self.across = _rotation_parts(text.head_dim, tables[0].shape[-1])
        self.plans = torch.arange(cache.batch)[:, None]

    @staticmethod
    def suits(planner, device: torch.device) -> bool:
        """Whether a planner is `fuse`d and its products take float32 on a CPU, whose kernels have no other form."""
        attentions = [layer.self_attn for layer in planner.model.language_model.layers]
        if device.type != "cpu" or kernels.registered_kernels("cpu"):
            return False
        if isinstance(planner.lm_head, W8Linear):
            return all(a.qkv_proj is not None and a.qkv_proj.packed_for_cpu for a in attentions)
        return planner.lm_head.weight.dtype == torch.float32 and all(a.fused is not None for a in attentions)

    def __call__(self, ids: torch.Tensor, k: int, mask: torch.Tensor | None, slot: int) -> torch.Tensor:
        """Ids (B,) of token `k` of the plan, whose keys go to `slot` -> (B, vision vocabulary) logits after it.

        `mask` (B, 1, 1, slot + 1) is True where a key may be seen; None sees all.
        """
        rotation = torch.addcmul(self.straight * self.cos[k], self.across, self.sin[k])
        written = self.cache.slots.select(4, slot).flatten(0, 1).unbind()

        def write(i: int, k: torch.Tensor, v: torch.Tensor) -> None:
            written[2 * i].copy_(k)
            written[2 * i + 1].copy_(v)

        return self._run(ids, rotation, write, slot + 1, mask)

    def window(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, slots: torch.Tensor, read: int
    ) -> torch.Tensor:
        """Ids (B, W) of W tokens of each plan, whose keys go to `slots` (B, W) -> (B, W, vision vocabulary) logits.

        `positions` (B * W,) count tokens through all plans, N to each; `mask` is of `kernels.window_mask`.
        """
        cos, sin = self.flat.index_select(0, positions).chunk(2, dim=-1)
        rotation = torch.addcmul(self.straight * cos, self.across, sin)
        write = self._writer(slots)
        return self._run(ids.flatten(), rotation, write, read, mask).view(*ids.shape, -1)

    def _writer(self, slots: torch.Tensor) -> Callable[[int, torch.Tensor, torch.Tensor], None]:
        """Puts keys and values (B * W, kv_heads, D) of a layer where their slots are, which follow each other."""
        if len(slots) == 1:
            written = self.cache.slots.narrow(4, int(slots[0, 0]), slots.shape[1]).flatten(0, 1).unbind()

            def write(i: int, k: torch.Tensor, v: torch.Tensor) -> None:
                written[2 * i].copy_(k.transpose(0, 1))
                written[2 * i + 1].copy_(v.transpose(0, 1))

        else:
            where = self.plans, slice(None), slots

            def write(i: int, k: torch.Tensor, v: torch.Tensor) -> None:
                self.cache.keys[i][where] = k.unflatten(0, slots.shape)
                self.cache.values[i][where] = v.unflatten(0, slots.shape)

        return write

    def _run(self, ids: torch.Tensor, rotation, write, read: int, mask) -> torch.Tensor:
        """Ids (n,), n / B of each plan, their rotations (n, D, D) -> (n, vision vocabulary) logits."""
        x = F.embedding(ids, self.embedding).float()
        seen = self.cache.slots.narrow(4, 0, read).flatten(0, 1).unbind()
        for i, layer in enumerate(self.layers):
            q, k, v = self._project(self._normed(x, layer.input_norm), layer, rotation)
            write(i, k, v)
            half = layer.out(self._attention(q.to(seen[0].dtype), seen[2 * i], seen[2 * i + 1], mask).float())
            x = torch.addcmul(x, unit_rms(half, self.eps), layer.attention_norm)
            gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
            half = layer.down(F.silu(gate).mul_(up))
            x = torch.addcmul(x, unit_rms(half, self.eps), layer.post_mlp_norm)
        return self.head(self._normed(x, self.norm))

    def _project(self, x: torch.Tensor, layer: Layer, rotation) -> tuple[torch.Tensor, ...]:
        """(n, H) -> rotated queries (n, heads, D) and keys, values (n, kv_heads, D)."""
        qkv = layer.qkv(x).view(len(x), -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=1)
        return *torch.bmm(qk, rotation).split((self.heads, self.kv_heads), dim=1), v

    def _attention(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask) -> torch.Tensor:
        """(n, heads, D) queries over (B, kv_heads, S, D) -> (n, H). Heads that share a key head are queries of it."""
        width = len(q) // len(keys)
        if width == 1:
            q = q.reshape(len(q), self.kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).reshape(len(q), -1)
        group = self.heads // self.kv_heads
        q = q.view(-1, width, self.kv_heads, group, self.head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return out.unflatten(2, (group, width)).permute(0, 3, 1, 2, 4).reshape(len(keys) * width, -1)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return unit_rms(x, self.eps).mul_(weight)


def product(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """(B, in) -> (B, out) by a matrix (out, in). BLAS multiplies few rows on one thread, oneDNN on all."""
    if ONEDNN and weight.numel() >= LARGE:
        return lambda x: ONEDNN(x, weight, bias, "none", [], "")
    matrix = weight.t()
    return (lambda x: torch.mm(x, matrix)) if bias is None else (lambda x: torch.addmm(bias, x, matrix))


def _product_of(layer: nn.Module) -> Product:
    return layer.forward if isinstance(layer, CodedLinear) else product(layer.weight, layer.bias)


def _layer(layer) -> Layer:
    attention = layer.self_attn
    return Layer(
        layer.input_layernorm.weight.float(),
        _product_of(attention.qkv_proj) if attention.fused is None else product(*attention.fused),
        _product_of(attention.o_proj),
        layer.post_self_attn_layernorm.weight.float(),
        layer.post_attention_layernorm.weight.float(),
        _product_of(layer.mlp.gate_up_proj),
        _product_of(layer.mlp.down_proj),
        layer.post_mlp_layernorm.weight.float(),
    )


def _padded(table: torch.Tensor, head_dim: int, value: float) -> torch.Tensor:
    """(B, 1, N, R) -> (B, 1, N, D), `value` for the channels that do not rotate."""
    return F.pad(table, (0, head_dim - table.shape[-1]), value=value)


def _rotation_parts(head_dim: int, rotary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, D) matrices such that x @ (straight * cos + across * sin) turns channel i against channel i + R/2."""
    straight, across = torch.eye(head_dim), torch.zeros(head_dim, head_dim)
    low = torch.arange(rotary // 2)
    across[low + rotary // 2, low] = -1.0
    across[low, low + rotary // 2] = 1.0
    return straight, across
