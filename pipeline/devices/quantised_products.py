"""Products by weights of 8 and 4 bits in plain torch; `models/weight_forms.py` says how weights lie.

Few rows, as in planning tokens, are limited by reading weights: there a product of its own reads the codes. Many rows,
as in the decoder, are limited by arithmetic: there codes are widened to the input's dtype, once for all rows. Where a
device has no product for few rows, widening costs more than it spares, and `slow_reason` says so.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from ..errors import InputError

GROUP = 32  # numbers that share a scale and a zero in 4 bits
FEW_ROWS = {"cpu": 32, "cuda": 16}  # up to which reading codes is faster than widening them
BITS = {"w8": "8-bit", "w4": "4-bit"}
HALVES = (torch.float16, torch.bfloat16)


def int8_linear(x, weight, scale, bias):
    """`kernels.int8_linear`."""
    if not _few(x):
        return widened_int8_linear(x, weight, scale, bias)
    if x.device.type == "cpu":
        return by_rows(lambda rows: torch._weight_int8pack_mm(rows, weight, scale), x, bias)
    from .triton_products import w8_rows

    return by_rows(lambda rows: w8_rows(rows, weight, scale), x, bias)


def widened_int8_linear(x, weight, scale, bias):
    """By an ordinary product, for what no kernel of 8-bit weights takes; float16 would overflow with scales last."""
    return F.linear(x, weight.to(x.dtype) * scale[:, None], bias)


def int4_linear(x, weight, scale, zero, bias):
    """`kernels.int4_linear`."""
    if not _few(x) or x.device.type == "cpu":
        return F.linear(x, widened_int4(weight, scale, zero), bias)
    from .triton_products import w4_rows

    return by_rows(lambda rows: w4_rows(rows, weight, scale, zero), x, bias)


def widened_int4(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(out, in / 2) bytes, (out, in / 32) scales and zeros -> the numbers (out, in), in the scales' dtype."""
    codes = _codes(weight).view(torch.int8).sub_(8).view(*scale.shape, GROUP)
    return (codes * scale[..., None]).add_(zero[..., None]).flatten(1)


def _codes(weight: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the first one low -> uint8 (out, in)."""
    return torch.stack((weight & 15, weight >> 4), dim=-1).flatten(1)


def pack_int4(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """4-bit weights in the order of the CPU's own product, with a table of scales and zeros; None on other devices,
    which read them as they lie, and for what that product does not take.
    """
    if device.type != "cpu" or scale.dtype != torch.bfloat16 or len(weight) % 16:
        return None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(_codes(weight).int(), 1)
    return packed, torch.stack((scale, zero), dim=-1).transpose(0, 1).contiguous()  # (in / 32, out, 2)


def packed_int4_linear(x, packed, table, bias):
    """(..., in) times weights of `pack_int4` -> (..., out), plus `bias`."""
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return by_rows(lambda rows: multiply(rows, packed, GROUP, table), x, bias)


def by_rows(product: Callable, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., in) -> (..., out) by a `product` that takes (rows, in) and knows no bias."""
    out = product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def _few(x: torch.Tensor) -> bool:
    """Whether these are few rows of a dtype for which their device has a product that reads codes."""
    few = x.numel() <= FEW_ROWS.get(x.device.type, 0) * x.shape[-1]
    if x.device.type == "cpu":
        return few and x.dtype == torch.bfloat16
    return few and x.dtype in HALVES and has_triton()


@functools.cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def check_form(form: str, device: torch.device) -> None:
    """Refuse weights of a form that a device cannot multiply by."""
    if form == "w4" and device.type == "npu":
        raise InputError(
            f"4-bit weights (w4) do not run on {device}, whose operator takes 8 bits on every chip; use w8"
        )


def slow_reason(form: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why planning tokens takes longer in a form on a device than with whole weights; None if it does not."""
    bits, word = BITS[form], str(dtype).removeprefix("torch.")
    if device.type == "cuda" and not has_triton():
        return f"{bits} weights are widened for every token, because triton is not installed"
    takes = {"cpu": (torch.bfloat16,), "cuda": HALVES, "npu": HALVES}.get(device.type, ())
    if dtype in takes:
        return None
    known = " and ".join(str(each).removeprefix("torch.") for each in takes)
    reason = f"products of such weights exist in {known} only" if takes else "no such product exists there"
    return f"{bits} weights are widened for every token on {device} in {word}: {reason}"
