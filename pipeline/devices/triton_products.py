"""Products of few rows by weights of 8 and 4 bits on CUDA, in Triton, which torch's builds for CUDA bring along.

Planning a token reads every weight once, so time follows bytes: codes are read as they lie in the file and widened in
registers. torch's own `_weight_int8pack_mm` takes 17 times as long as bfloat16 on an H200. The first product of a shape
compiles for some seconds. Shapes: M rows of the input (16 at most), N rows of the weight, K numbers in each.
"""

import torch
import triton
import triton.language as tl

ROWS = 16  # what a product of tensor cores takes at least; fewer rows are padded in registers
TILE = {"BLOCK_N": 16, "BLOCK_K": 256}


@triton.jit
def _w8(
    x,
    w,
    scale,
    out,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m, n = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        rows = tl.load(x + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        at = n.to(tl.int64)[None, :] * K + k[:, None]
        codes = tl.load(w + at, mask=(n[None, :] < N) & (k[:, None] < K), other=0)
        total = tl.dot(rows, codes.to(rows.dtype), total)
    total *= tl.load(scale + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N)
    )


@triton.jit
def _w4(
    x,
    w,
    scale,
    zero,
    out,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A byte holds the codes of an even number (low) and the odd one after it; 16 bytes are a group."""
    m, n = tl.arange(0, BLOCK_M), tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total, half = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), K // 2
    for start in range(0, half, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (m[:, None] < M) & (k[None, :] < half)
        even = tl.load(x + m[:, None] * K + 2 * k[None, :], mask=inside, other=0.0)
        odd = tl.load(x + m[:, None] * K + 2 * k[None, :] + 1, mask=inside, other=0.0)
        inside = (n[None, :] < N) & (k[:, None] < half)
        codes = tl.load(w + n.to(tl.int64)[None, :] * half + k[:, None], mask=inside, other=0).to(tl.int32)
        group = n[None, :] * (half // 16) + (k // 16)[:, None]
        steps = tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)
        zeros = tl.load(zero + group, mask=inside, other=0.0).to(tl.float32)
        low = ((codes & 15) - 8).to(tl.float32) * steps + zeros
        high = ((codes >> 4) - 8).to(tl.float32) * steps + zeros
        total = tl.dot(even, low.to(even.dtype), total)
        total = tl.dot(odd, high.to(odd.dtype), total)
    tl.store(
        out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N)
    )


def w8_rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(M, K) by int8 (N, K) and scales (N,) -> (M, N)."""
    out = x.new_empty(len(x), len(weight))
    grid = (triton.cdiv(len(weight), TILE["BLOCK_N"]),)
    _w8[grid](x, weight, scale, out, *x.shape[:1], *weight.shape, BLOCK_M=ROWS, **TILE, num_warps=4, num_stages=4)
    return out


def w4_rows(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(M, K) by uint8 (N, K / 2), scales and zeros (N, K / 32) -> (M, N)."""
    out = x.new_empty(len(x), len(weight))
    grid = (triton.cdiv(len(weight), TILE["BLOCK_N"]),)
    sizes = len(x), len(weight), x.shape[1]
    _w4[grid](x, weight, scale, zero, out, *sizes, BLOCK_M=ROWS, BLOCK_N=16, BLOCK_K=128, num_warps=4, num_stages=3)
    return out
