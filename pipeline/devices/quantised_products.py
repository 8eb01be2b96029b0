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
from .capabilities import capabilities

GROUP = 32  # numbers that share a scale and a zero in 4 bits
FEW_ROWS = {"cpu": 32, "cuda": 16}  # up to which reading codes is faster than widening them
BITS = {"w8": "8-bit", "w4": "4-bit"}
HALVES = (torch.float16, torch.bfloat16)
INT4_CHIPS = ("A2", "A3")  # whose operator takes 4 bits in groups, by torch_npu's documentation
FARTHEST = 2.0**15  # steps from a group's zero to nought, which half precision can still count
PACKED = 1024  # columns that are packed at once, eight times as large as before


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
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, device: torch.device, kind: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
    """4-bit weights in the order of the product of a device, or of another `kind` of device: on a CPU with a table of
    scales and zeros and no third tensor, on an NPU with scales and offsets. None on other devices, which read them as
    they lie, and for what the CPU's product does not take.
    """
    kind = kind or device.type
    if kind == "npu":
        return _pack_for_npu(weight, scale, zero, device)
    if kind != "cpu" or len(weight) % 16:
        return None
    table = torch.stack((scale, zero), dim=-1).transpose(0, 1).contiguous()  # (in / 32, out, 2)
    short = table.bfloat16()
    if not torch.equal(short.to(table.dtype), table):
        return None
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(_codes(weight).int(), 1), short, None


def _pack_for_npu(weight, scale, zero, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `npu_weight_quant_batchmatmul` takes 4 bits: int32 (in, out / 8) by its own packing, which A2 and A3 have,
    scales and offsets (in / 32, out), where a number is (code - 8 + offset) * scale. They stay where they were.
    """
    out, groups = scale.shape
    if out % 8 or groups < 2:
        raise InputError(
            f"4-bit weights (w4) of {out} rows in {groups} groups of {GROUP} do not fit the operator of {device}, "
            "which takes a multiple of 8 rows and two groups or more; use w8"
        )
    codes, scales, zeros = _codes(weight.cpu()).view(torch.int8).sub_(8), scale.cpu().float(), zero.cpu().float()
    least = zeros.abs() / FARTHEST
    codes.view(out, groups, GROUP).masked_fill_((scales < least)[..., None], 0)  # such a group is its zero alone
    scales = scales.maximum(least)
    parts = (part.T.contiguous().int().to(device) for part in codes.split(PACKED, dim=1))
    words = torch.cat([torch.ops.npu.npu_convert_weight_to_int4pack(part) for part in parts])
    tables = (table.T.contiguous().to(scale.device, scale.dtype) for table in (scales, zeros / scales))
    return words.to(weight.device), *tables


def packed_int4_linear(x, packed, table, bias):
    """(..., in) times weights of `pack_int4` -> (..., out), plus `bias`: of bfloat16, in which alone torch is fast."""
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return by_rows(lambda rows: multiply(rows.bfloat16(), packed, GROUP, table).to(x.dtype), x, bias)


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


def check_form(form: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Refuse weights of a form that a device cannot multiply by."""
    if form != "w4" or device.type != "npu":
        return
    family = capabilities(device).family
    if family not in INT4_CHIPS:
        known = " and ".join(INT4_CHIPS)
        raise InputError(
            f"4-bit weights (w4) do not run on {device} ({family}): only {known} are known to multiply by them; use w8"
        )
    if dtype == torch.float32:
        raise InputError(f"4-bit weights (w4) run on {device} in bf16 and fp16, not in fp32; use another dtype, or w8")


def slow_reason(form: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why planning tokens takes longer in a form on a device than with whole weights; None if it does not.

    Of codes as they lie in files; in the order of a CPU's own product they are fast there in any dtype.
    """
    bits, word = BITS[form], str(dtype).removeprefix("torch.")
    if device.type == "cuda" and not has_triton():
        return f"{bits} weights are widened for every token, because triton is not installed"
    takes = {"cpu": (torch.bfloat16,), "cuda": HALVES, "npu": HALVES}.get(device.type, ())
    if dtype in takes:
        return None
    known = " and ".join(str(each).removeprefix("torch.") for each in takes)
    reason = f"products of such weights exist in {known} only" if takes else "no such product exists there"
    return f"{bits} weights are widened for every token on {device} in {word}: {reason}"
