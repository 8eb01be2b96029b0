"""torch_npu's fused operators for `kernels`: one kernel where plain torch launches several.

Chips that have them get FUSED, others FALLBACKS; arguments and results are those of plain torch. Boolean masks
throughout: a float mask takes the slow path of torch_npu. Shapes as in `kernels`, plus G query heads a key head.
"""

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakIdKeyDictionary

from . import plain_kernels, quantised_products
from .capabilities import capabilities
from .kernel_memory import queries_at_once

npu = torch.ops.npu  # torch_npu has registered its operators here
HALVES = (torch.float16, torch.bfloat16)
MAX_GROUP = 64  # query heads that may share a key head in the inference kernel


_inverted = WeakIdKeyDictionary()  # mask -> (its version, what CANN wants: True where a key may not be seen)


def attention(q, k, v, mask, scale):
    """`kernels.attention`, by what the kernels of CANN take.

    Decoding (few queries that see the same keys, through a mask) takes the inference kernel or plain products, because
    the training kernel behind scaled_dot_product_attention cannot be captured into a graph.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if mask.dtype != torch.bool:
        return sliced_attention(q, k, v, mask, scale)
    learns = any(x.requires_grad for x in (q, k, v))  # the inference kernel has no gradients
    if mask.shape[-2] > 1 or q.shape[2] > MAX_GROUP or learns:
        mask = mask.expand(q.shape[0], 1, q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if q.dtype in HALVES and q.shape[1] * q.shape[2] // k.shape[1] <= MAX_GROUP:
        return _decode(q, k, v, _forbidden(mask), scale)
    return sliced_attention(q, k, v, mask, scale)


def _decode(q, k, v, forbidden, scale):
    """Queries that see the same keys are query heads that share a key head: (B, H, L, D) -> (B, H*L, 1, D)."""
    heads = q.shape[1] * q.shape[2]
    out, _ = npu.npu_fused_infer_attention_score(
        q.reshape(q.shape[0], heads, 1, q.shape[3]),
        k.contiguous(),
        v.contiguous(),
        atten_mask=forbidden.expand(q.shape[0], 1, 1, k.shape[2]).contiguous(),
        num_heads=heads,
        num_key_value_heads=k.shape[1],
        scale=scale,
        input_layout="BNSD",
    )
    return out.view(q.shape)


def window_mask(mask, group, dtype):
    """Half types only, since the kernel takes no others: where a key may not be seen, in one piece."""
    return ~mask.contiguous() if dtype in HALVES else plain_kernels.window_mask(mask, group, dtype)


def window_attention(q, k, v, mask):
    """By the inference kernel, which unlike the training one can be captured and takes several queries a head."""
    if q.dtype not in HALVES:
        return plain_kernels.window_attention(q, k, v, mask, attention)
    out, _ = npu.npu_fused_infer_attention_score(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        atten_mask=mask,
        num_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        scale=q.shape[-1] ** -0.5,
        input_layout="BNSD",
    )
    return out


def sliced_attention(q, k, v, mask, scale):
    """`kernels.attention` for chips without a fused kernel, in pieces that bound the memory of the scores."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    most = queries_at_once(q.shape[0] * q.shape[1] * k.shape[2])
    pieces = q.split(most, dim=2)
    masks = [mask] * len(pieces) if mask is None or mask.shape[-2] == 1 else mask.split(most, dim=-2)
    return torch.cat([_products(piece, k, v, scale, part) for piece, part in zip(pieces, masks)], dim=2)


def _products(q, k, v, scale, mask):
    """Attention spelled out, with its softmax in float32; scaled first, because float16 overflows at 65504."""
    batch, heads, length, width = q.shape
    grouped = (q * scale).reshape(batch, k.shape[1], -1, width)  # (B, key heads, G*L, D)
    scores = (grouped @ k.transpose(-1, -2)).float().view(batch, heads, length, -1)
    if mask is not None:
        seen_only = mask.dtype == torch.bool
        scores = scores.masked_fill(_forbidden(mask), float("-inf")) if seen_only else scores + mask  # T5's bias
    return (scores.softmax(-1).to(v.dtype).view(batch, k.shape[1], -1, k.shape[2]) @ v).view(q.shape)


def _forbidden(mask: torch.Tensor) -> torch.Tensor:
    """The opposite of a mask, computed once for all layers that are given the same one."""
    version = None if mask.is_inference() else mask._version
    known = _inverted.get(mask)
    if known is None or known[0] != version:
        _inverted[mask] = known = (version, ~mask)
    return known[1]


def rms_norm(x, weight, eps):
    return npu.npu_rms_norm(x, weight, eps)[0]


def rope(x, cos, sin):
    """In float32: the kernel takes tables of its input's dtype, and half precision has too few digits for angles."""
    shape = (1,) * (4 - cos.ndim) + cos.shape
    return npu.npu_rotary_mul(x.float(), cos.view(shape), sin.view(shape)).to(x.dtype)


def swiglu(gate_up):
    return npu.npu_swiglu(gate_up, dim=-1)


def gelu(x):
    """F.gelu ignores `approximate` on an NPU and always takes the tanh."""
    return npu.npu_gelu(x, approximate="none")


def gelu_tanh(x):
    return npu.npu_gelu(x, approximate="tanh")


def int8_linear(x, weight, scale, bias):
    """Every chip has this kernel, for halves; it takes rows, and a transposed weight is what it is fastest with."""
    if x.dtype not in HALVES:
        return quantised_products.widened_int8_linear(x, weight, scale, bias)
    return quantised_products.by_rows(lambda rows: npu.npu_weight_quant_batchmatmul(rows, weight.t(), scale), x, bias)


def int4_linear(x, weight, scale, zero, bias):
    """By weights of `quantised_products.pack_int4`; on A2 and A3, which `check_form` sees to."""
    size = quantised_products.GROUP
    return quantised_products.by_rows(
        lambda rows: npu.npu_weight_quant_batchmatmul(rows, weight, scale, zero, antiquant_group_size=size), x, bias
    )


FUSED = {
    "attention": attention,
    "window_mask": window_mask,
    "window_attention": window_attention,
    "rms_norm": rms_norm,
    "rope": rope,
    "swiglu": swiglu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "int8_linear": int8_linear,
    "int4_linear": int4_linear,
}
FALLBACKS = {"attention": sliced_attention, "int8_linear": int8_linear}


def implementations() -> dict:
    """Those for the chips of this machine, which are of one family."""
    return FUSED if capabilities(torch.device("npu", torch.npu.current_device())).fused else FALLBACKS
