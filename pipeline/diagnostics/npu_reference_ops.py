"""torch_npu's fused operators, with its schemas, computed on the CPU in plain torch.

torch_npu has them for NPUs only. These let `pipeline.devices.npu_kernels`, the code that calls them, run and be audited
on a machine without an NPU.
"""

import math

import torch
import torch.nn.functional as F

SCHEMAS = {  # as torch_npu 2.13.0 registers them, down to the arguments that `pipeline.devices.npu_kernels` gives
    "npu_rms_norm": "(Tensor input, Tensor gamma, float epsilon=1e-6) -> (Tensor, Tensor)",
    "npu_rotary_mul": '(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half") -> Tensor',
    "npu_swiglu": "(Tensor input, int dim=-1) -> Tensor",
    "npu_gelu": '(Tensor input, *, str approximate="none") -> Tensor',
    "npu_fused_infer_attention_score": "(Tensor query, Tensor key, Tensor value, *, Tensor? atten_mask=None, "
    'int num_heads=1, float scale=1., str input_layout="BSH", int num_key_value_heads=0) -> (Tensor, Tensor)',
    "npu_weight_quant_batchmatmul": "(Tensor x, Tensor weight, Tensor antiquant_scale, Tensor? antiquant_offset=None, "
    "Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? bias=None, int antiquant_group_size=0) -> Tensor",
    "npu_convert_weight_to_int4pack": "(Tensor weight, int inner_k_tiles=0) -> Tensor",
}
_defined: list[torch.library.Library] = []  # a library's operators live as long as it does


def define() -> None:
    """Make `torch.ops.npu` hold the fused operators for the CPU, once a process."""
    if _defined:
        return
    library = torch.library.Library("npu", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch, "npu"):
            library.define(name + schema)
        library.impl(name, globals()[name], "CPU")
    _defined.append(library)


def npu_rms_norm(x, gamma, epsilon=1e-6):
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x.float() * scale * gamma.float()).to(x.dtype), scale


def npu_rotary_mul(x, r1, r2, rotary_mode="half"):
    low, high = x.chunk(2, dim=-1)
    return x * r1 + torch.cat((-high, low), dim=-1) * r2


def npu_swiglu(x, dim=-1):
    gate, up = x.chunk(2, dim=dim)
    return F.silu(gate) * up


def npu_gelu(x, *, approximate="none"):
    return F.gelu(x, approximate=approximate)


def npu_fused_infer_attention_score(
    query, key, value, *, atten_mask=None, num_heads=1, scale=1.0, input_layout="BSH", num_key_value_heads=0
):
    """(B, H, L, D) queries; the mask is True where a key may not be seen."""
    group = num_heads // (num_key_value_heads or num_heads)
    key, value = (t.float().repeat_interleave(group, dim=1) for t in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * scale
    if atten_mask is not None:
        scores = scores.masked_fill(atten_mask, -math.inf)
    return (scores.softmax(-1) @ value).to(query.dtype), scores.logsumexp(-1, keepdim=True)


def npu_weight_quant_batchmatmul(
    x,
    weight,
    antiquant_scale,
    antiquant_offset=None,
    quant_scale=None,
    quant_offset=None,
    bias=None,
    antiquant_group_size=0,
    *_,
):
    """(M, K) times int8 (K, N), whose columns are scaled by (N,); or 4 bits in int32 (K, N / 8) with (K / group, N)."""
    if weight.dtype == torch.int8:
        return (x.float() @ weight.float() * antiquant_scale.float()).to(x.dtype)
    tables = (antiquant_offset, antiquant_scale)
    offset, scale = (table.float().repeat_interleave(antiquant_group_size, 0) for table in tables)
    codes = (weight[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    numbers = (((codes ^ 8) - 8).flatten(1) + offset) * scale
    return (x.float() @ numbers).to(x.dtype)


def npu_convert_weight_to_int4pack(weight, inner_k_tiles=0):
    """int32 (K, N) of -8 to 7 -> (K, N / 8), the first of eight in the lowest bits."""
    codes = (weight & 15).unflatten(1, (-1, 8)) << torch.arange(0, 32, 4, dtype=torch.int32)
    return codes.sum(-1, dtype=torch.int32)
