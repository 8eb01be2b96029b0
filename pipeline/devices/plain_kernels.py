"""The functions of `kernels.py` in plain torch, for every device that has nothing faster."""

import functools
import math

import torch
import torch.nn.functional as F


def attention(q, k, v, mask, scale):
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, str):  # `kernels.CAUSAL`, of which half the products need not be computed
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def window_mask(mask, group, dtype):
    """As amounts to add, which torch would otherwise make of a boolean mask in every layer."""
    amounts = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
    return amounts.repeat(1, 1, group, 1)


def window_attention(q, k, v, mask, attention):
    """Heads that share a key head, each with all its rows, are queries of one head: keys are never repeated."""
    folded = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    return attention(folded, k, v, mask, None).view(q.shape)


def rms_norm(x, weight, eps):
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return unit_rms(x, eps) * weight
    return F.rms_norm(x, weight.shape, weight, eps)  # computes half types in float32 and rounds the result only


def unit_rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., C) -> the same of unit root mean square. On a CPU in float32 only: in a third to a ninth less time than
    `F.rms_norm`, whose squares are a tensor of their own.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(_number(eps), norm, norm, value=1 / x.shape[-1]).rsqrt()


@functools.cache
def _number(value: float) -> torch.Tensor:
    with torch.inference_mode(False):  # kept, and used in training too
        return torch.tensor(value)


def rope(x, cos, sin):
    wide = x.float()  # positions in the thousands need float32 angles
    low, high = wide.chunk(2, dim=-1)
    return torch.addcmul(wide * cos, torch.cat((-high, low), dim=-1), sin).to(x.dtype)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


def modulated_norm(x, scale, shift, eps):
    if scale.shape[0] == 1:  # one modulation for the batch is the norm's own affine part: one kernel, one rounding
        return F.layer_norm(x, x.shape[-1:], scale[0], shift[0], eps)
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=eps), scale[:, None])
