"""The tensor functions every model of this package is made of: attention, norms, rotary, products of rounded weights.

Each is plain torch (`plain_kernels.py`), unless something faster is registered for the device; the models never know.
NPUs get theirs when the first tensor comes. Shapes: `B` batch, `H` heads, `L` tokens, `D` head dim, `C` channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from . import plain_kernels, quantised_products

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
    "int4_linear",
}
CAUSAL = "causal"  # a mask that shows every query the keys up to its own place
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
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | str | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """(B, H, L, D) queries over (B, H or fewer, Lk, D) keys and values -> (B, H, L, D).

    `mask` is boolean, True where a key may be seen, and broadcasts to (B, H, L, Lk); None sees all. T5 passes its
    float position bias there. `CAUSAL` takes as many queries as keys. `scale` defaults to 1/sqrt(D). Query heads share
    keys in consecutive groups.
    """
    implementation = _implementation("attention", q, plain_kernels.attention)
    if mask is CAUSAL and implementation is not plain_kernels.attention:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
    return implementation(q, k, v, mask, scale)


def window_mask(mask: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, L, Lk) bool, True where a key may be seen -> what `window_attention` of all layers takes.

    `group` query heads share a key head; `dtype` is the queries'.
    """
    return _implementation("window_mask", mask, plain_kernels.window_mask)(mask, group, dtype)


def window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`attention` of few queries (B, H, L, D) that see different keys, with a mask of `window_mask`."""
    if implementation := registered_kernels(q.device.type).get("window_attention"):
        return implementation(q, k, v, mask)
    return plain_kernels.window_attention(q, k, v, mask, attention)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., C) -> (..., C) of unit root mean square times `weight` (C,)."""
    return _implementation("rms_norm", x, plain_kernels.rms_norm)(x, weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i of (B, H, L, D) against channel i + R/2 by the float32 tables (..., L, R); R..D stay."""
    rotate, rotary = _implementation("rope", x, plain_kernels.rope), cos.shape[-1]
    if rotary == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :rotary], cos, sin), x[..., rotary:]), dim=-1)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2C) fused gate and up projections -> (..., C) as silu(gate) * up."""
    return _implementation("swiglu", gate_up, plain_kernels.swiglu)(gate_up)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU by the error function."""
    return _implementation("gelu", x, F.gelu)(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh approximation."""
    return _implementation("gelu_tanh", x, plain_kernels.gelu_tanh)(x)


def modulated_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm of (B, L, C) times `scale` plus `shift`, both (B or 1, C)."""
    return _implementation("modulated_norm", x, plain_kernels.modulated_norm)(x, scale, shift, eps)


def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(..., in) times the rows of int8 `weight` (out, in), each times its `scale` (out,) -> (..., out), plus `bias`."""
    return _implementation("int8_linear", x, quantised_products.int8_linear)(x, weight, scale, bias)


def int4_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(..., in) times uint8 `weight` (out, in / 2), two codes of 4 bits a byte, the first one low -> (..., out).

    A number is (code - 8) * `scale` + `zero`, both (out, in / 32).
    """
    return _implementation("int4_linear", x, quantised_products.int4_linear)(x, weight, scale, zero, bias)
