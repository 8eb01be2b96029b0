"""Matrix products, convolutions, normalisations and the fused operators of transformers."""

import os

import torch
import torch.nn.functional as F

from .table import Table, flag, optional, put, wide

table = Table()
kernel = table.kernel


@kernel("Matmul", "Mm", "BatchMatMul", "Dot", "Mv")
def matmul(x, y, out, *_):
    put(out, wide(x) @ wide(y))


@kernel("Addmm", "Baddbmm")
def addmm(bias, x, y, beta, alpha, out, *_):
    put(out, beta * wide(bias) + alpha * (wide(x) @ wide(y)))


@kernel("InplaceAddmm")
def addmm_in_place(bias, x, y, beta, alpha, *_):
    addmm(bias, x, y, beta, alpha, bias)


@kernel("WeightQuantBatchMatmulV2")
def weight_quant(x, weight, scale, offset, quant_scale, quant_offset, bias, group, out, *_):
    for refused in (quant_scale, quant_offset, bias):
        assert optional(refused) is None
    assert scale.dtype == x.dtype
    if weight.dtype == torch.int8:
        assert group == 0 and optional(offset) is None
        return put(out, wide(x) @ (wide(weight) * wide(scale)))
    chip = os.environ.get("FAKE_CANN_SOC", "")
    assert chip.startswith(("Ascend910B", "Ascend910_93")), f"{chip} multiplies by no weights of 4 bits"
    k = x.shape[1]
    assert weight.dtype == torch.int32 and group % 32 == 0 and 32 <= group < k
    assert offset.dtype == x.dtype and scale.shape == offset.shape == (-(-k // group), out.shape[1])
    each = [wide(table).repeat_interleave(group, 0)[:k] for table in (offset, scale)]
    return put(out, wide(x) @ ((int4_numbers(weight) + each[0]) * each[1]))


@kernel("ConvertWeightToINT4Pack")
def convert_to_int4(weight, out, *_):
    """Eight numbers a word; which of them comes first is the operator's own affair, as long as products agree."""
    assert weight.dtype == torch.int32 and weight.is_contiguous() and weight.shape[1] % 8 == 0
    assert int(weight.min()) >= -8 and int(weight.max()) <= 7
    nibbles = (weight & 15).to(torch.int64).unflatten(1, (-1, 8))
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    put(out, words.where(words < 1 << 31, words - (1 << 32)).to(torch.int32))


def int4_numbers(words):
    """int32 (K, N / 8) of `convert_to_int4` -> float (K, N)."""
    nibbles = (words[..., None].to(torch.int64) >> torch.arange(0, 32, 4)) & 15
    return (nibbles - 16 * (nibbles > 7)).flatten(1).to(torch.float32)


@kernel("Convolution")
def convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, out, *_):
    bias = wide(optional(bias))
    value = torch.convolution(
        wide(x), wide(weight), bias, stride, padding, dilation, flag(transposed), output_padding, groups
    )
    put(out, value)


@kernel("LayerNorm", "LayerNormWithImplMode", "FastLayerNorm", reals=True)
def layer_norm(reals, x, shape, weight, bias, out, mean, deviation, *_):
    y, m, r = torch.native_layer_norm(wide(x), shape, wide(optional(weight)), wide(optional(bias)), reals[0])
    put(out, y)
    if optional(mean) is not None:
        put(mean, m)
        put(deviation, r)


@kernel("RmsNorm", reals=True)
def rms_norm(reals, x, weight, out, deviation, *_):
    r = (x.float().pow(2).mean(-1, keepdim=True) + reals[0]).rsqrt()
    put(out, x.float() * r * weight.float())
    put(deviation, r)


@kernel("AddRmsNorm", reals=True)
def add_rms_norm(reals, x, residual, weight, out, deviation, total, *_):
    s = x.float() + residual.float()
    r = (s.pow(2).mean(-1, keepdim=True) + reals[0]).rsqrt()
    put(out, s * r * weight.float())
    put(deviation, r)
    put(total, s)


@kernel("GroupNorm", reals=True)
def group_norm(reals, x, weight, bias, batch, channels, size, groups, out, mean, deviation, *_):
    y, m, r = torch.native_group_norm(
        wide(x).contiguous(), wide(optional(weight)), wide(optional(bias)), batch, channels, size, groups, reals[0]
    )
    put(out, y)
    put(mean, m)
    put(deviation, r)


@kernel("SwiGlu")
def swiglu(x, dim, out, *_):
    gate, up = wide(x).chunk(2, dim)
    put(out, F.silu(gate) * up)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mode: int) -> torch.Tensor:
    """mode 0: the two halves are rotated against each other; mode 1: neighbouring elements."""
    if mode & 0xFF == 0:
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + turned * sin


@kernel("RotaryPositionEmbedding", "RotaryPositionEmbeddingV2")
def rotary(x, cos, sin, mode, *rest):
    put(rest[-1], rotate(wide(x), wide(cos), wide(sin), mode))
