"""The tensor functions every model of this package is made of; the only home of attention, norm and rotary kernels.

Each is plain torch, unless something faster is registered for the device; the models never know. NPUs get theirs when
the first tensor comes. Shapes: `B` batch, `H` heads, `L` tokens, `D` head dim, `C` channels.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

NAMES = {
    "attention",
    "window_mask",
    "window_attention",
    "rms_norm",
    "rope",
    "swiglu",
    "gelu",
    "gelu_tanh",
    "modulated_norm",
    "int8_linear",
}
FEW_ROWS = 32  # up to which a CPU multiplies 8-bit weights faster than it widens them
_REGISTERED: dict[str, dict[str, Callable]] = {}  # device type -> public name -> that device's implementation
_PLAIN: dict[str, Callable] = {}


def register_kernels(device_type: str, **implementations: Callable) -> None:
    """From now on run these functions of this module so for tensors of `device_type`; none resets it."""
    unknown = implementations.keys() - NAMES
    if unknown:
        raise ValueError(f"kernels have no function named {', '.join(sorted(unknown))}")
    _REGISTERED[device_type] = implementations


def registered_kernels(device_type: str) -> dict[str, Callable]:
    """What runs instead of plain torch on devices of a type."""
    if device_type == "npu" and device_type not in _REGISTERED:
        from . import npu_kernels  # needs torch_npu, which whoever has a tensor on an NPU has imported

        register_kernels("npu", **npu_kernels.implementations())
    return _REGISTERED.get(device_type, _PLAIN)


def _implementation(name: str, x: torch.Tensor, plain: Callable) -> Callable:
    return registered_kernels(x.device.type).get(name, plain)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """(B, H, L, D) queries over (B, H or fewer, Lk, D) keys and values -> (B, H, L, D).

    `mask` is boolean, True where a key may be seen, and broadcasts to (B, H, L, Lk); None sees all. T5 passes its
    float position bias there. `scale` defaults to 1/sqrt(D). Query heads share keys in consecutive groups.
    """
    return _implementation("attention", q, _attention)(q, k, v, mask, scale)


def window_mask(mask: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, L, Lk) bool, True where a key may be seen -> what `window_attention` of all layers takes.

    `group` query heads share a key head; `dtype` is the queries'.
    """
    return _implementation("window_mask", mask, plain_window_mask)(mask, group, dtype)


def window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`attention` of few queries (B, H, L, D) that see different keys, with a mask of `window_mask`."""
    return _implementation("window_attention", q, plain_window_attention)(q, k, v, mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., C) -> (..., C) of unit root mean square times `weight` (C,)."""
    return _implementation("rms_norm", x, _rms_norm)(x, weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i of (B, H, L, D) against channel i + R/2 by the float32 tables (..., L, R); R..D stay."""
    rotate, rotary = _implementation("rope", x, _rope), cos.shape[-1]
    if rotary == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :rotary], cos, sin), x[..., rotary:]), dim=-1)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2C) fused gate and up projections -> (..., C) as silu(gate) * up."""
    return _implementation("swiglu", gate_up, _swiglu)(gate_up)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU by the error function."""
    return _implementation("gelu", x, F.gelu)(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh approximation."""
    return _implementation("gelu_tanh", x, _gelu_tanh)(x)


def modulated_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm of (B, L, C) times `scale` plus `shift`, both (B or 1, C)."""
    return _implementation("modulated_norm", x, _modulated_norm)(x, scale, shift, eps)


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(..., in) times the rows of int8 `weight` (out, in), each times its `scale` (out,) -> (..., out), plus `bias`."""
    return _implementation("int8_linear", x, _int8_linear)(x, weight, scale, bias)


def _attention(q, k, v, mask, scale):
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def plain_window_mask(mask, group, dtype):
    """As amounts to add, which torch would otherwise make of a boolean mask in every layer."""
    amounts = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
    return amounts.repeat(1, 1, group, 1)


def plain_window_attention(q, k, v, mask):
    """Heads that share a key head, each with all its rows, are queries of one head: keys are never repeated."""
    folded = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    return attention(folded, k, v, mask).view(q.shape)


def _rms_norm(x, weight, eps):
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


def _rope(x, cos, sin):
    wide = x.float()  # positions in the thousands need float32 angles
    low, high = wide.chunk(2, dim=-1)
    return torch.addcmul(wide * cos, torch.cat((-high, low), dim=-1), sin).to(x.dtype)


def _swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


def _modulated_norm(x, scale, shift, eps):
    if scale.shape[0] == 1:  # one modulation for the batch is the norm's own affine part: one kernel, one rounding
        return F.layer_norm(x, x.shape[-1:], scale[0], shift[0], eps)
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=eps), scale[:, None])


def _int8_linear(x, weight, scale, bias):
    few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.numel() <= FEW_ROWS * x.shape[-1]
    if few:
        return by_rows(lambda rows: torch._weight_int8pack_mm(rows, weight, scale), x, bias)
    return widened_linear(x, weight, scale, bias)


def widened_linear(x, weight, scale, bias):
    """`int8_linear` by an ordinary product, for what no kernel of 8-bit weights takes."""
    return F.linear(x, weight.to(x.dtype) * scale[:, None], bias)


def by_rows(product: Callable, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., in) -> (..., out) by a `product` that takes (rows, in) and knows no bias."""
    out = product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
    return out if bias is None else out + bias
