"""Products by 8-bit weights on x86 CPUs with FBGEMM, which torch has for quantised models, without their loss.

FBGEMM multiplies 8-bit integers and adds them up exactly. So a row of inputs is written in three digits of base 128,
which keep 20 bits of its largest number, and the three products are put together. FBGEMM reads weights in an order of
its own, at the speed of memory, where torch's other products by codes are limited by arithmetic.
"""

import functools

import torch

ENGINES = ("x86", "fbgemm")  # of torch.backends.quantized, by which weights are packed for FBGEMM
BASE = 128  # of digits from -64 to 64: two of them times two codes fit into the 16 bits in which FBGEMM adds pairs
PLACES = 3
LARGEST = (BASE // 2 - 1) * BASE ** (PLACES - 1)  # of an input in steps
# By an input with its scale and zero; and the making of quantised tensors, which torch means to give up one day.
MULTIPLY = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)
CODED = getattr(torch, "_make_per_channel_quantized_tensor", None)
ROWS = 128  # at once, which bounds the memory of digits in long prompts
SMALLEST = 2.0**-100  # of largest numbers, so that rows of zeros stay zeros


@functools.cache
def available() -> bool:
    """Whether torch packs for FBGEMM here: not on Arm, nor where another program chose another engine."""
    return torch.backends.quantized.engine in ENGINES and None not in (MULTIPLY, CODED)


def pack(weight: torch.Tensor, scale: torch.Tensor) -> torch.ScriptObject:
    """int8 codes (out, in) and scales (out, 1) -> the same in FBGEMM's order, as many bytes, at some 0.2 GB/s."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    coded = CODED(weight, scale.view(-1).double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(coded, None)


def unpack(packed: torch.ScriptObject) -> torch.Tensor:
    """What `pack` was given, int8 (out, in)."""
    return torch.ops.quantized.linear_unpack(packed)[0].int_repr()


def linear(x: torch.Tensor, packed: torch.ScriptObject, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., in) times the codes' numbers -> (..., out) in the dtype of `x`, plus `bias`."""
    rows = x.reshape(-1, x.shape[-1]).float()
    if len(rows) <= ROWS:
        out = _product(rows, packed)
    else:
        out = torch.cat([_product(some, packed) for some in rows.split(ROWS)])
    out = out.view(*x.shape[:-1], -1).to(x.dtype)
    return out if bias is None else out + bias


def _product(rows: torch.Tensor, packed: torch.ScriptObject) -> torch.Tensor:
    """float32 (n, in) -> (n, out). The fewer calls the better: a product takes no longer than some twenty of them."""
    largest = rows.abs().amax(1).clamp_(min=SMALLEST)[:, None, None]
    steps, places = _tables()
    wholes = (rows[:, None] * (steps / largest)).round_()  # nought, then what the highest, two, all digits make up
    digits = torch.sub(wholes[:, 1:], wholes[:, :-1], alpha=BASE)
    products = MULTIPLY(digits.flatten(0, 1), 1.0, BASE // 2, packed).view(len(rows), PLACES, -1)
    return torch.bmm(places * largest, products)[:, 0]


@functools.cache
def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Steps (1, 4, 1) in a row's largest number, none and then by place, and what a digit counts of it (1, 1, 3)."""
    places = [float(BASE**k) for k in reversed(range(PLACES))]
    steps = torch.tensor([0.0, *(LARGEST / place for place in places)])
    return steps[None, :, None], torch.tensor([[[place / LARGEST for place in places]]])
