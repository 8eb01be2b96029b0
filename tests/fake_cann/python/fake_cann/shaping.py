"""Operators that create, join, repeat or move elements without looking at them."""

import torch
import torch.nn.functional as F

from .table import Table, flag, put

table = Table()
kernel = table.kernel


@kernel("Arange")
def arange(start, end, step, out, *_):
    put(out, torch.arange(start, end, step, device="cpu")[: out.numel()])


@kernel("Linspace")
def linspace(start, end, steps, out, *_):
    put(out, torch.linspace(start, end, steps, device="cpu"))


@kernel("Eye")
def eye(rows, columns, out, *_):
    put(out, torch.eye(rows, columns, device="cpu"))


@kernel("Cat")
def cat(tensors, dim, out, *_):
    put(out, torch.cat([tensor.to(out.dtype) for tensor in tensors], dim))


@kernel("Stack")
def stack(tensors, dim, out, *_):
    put(out, torch.stack(tensors, dim))


@kernel("Repeat")
def repeat(x, times, out, *_):
    put(out, x.repeat(times))


@kernel("RepeatInterleaveIntWithDim")
def repeat_interleave_dim(x, times, dim, size, out, *_):
    put(out, x.repeat_interleave(times, dim))


@kernel("RepeatInterleaveInt")
def repeat_interleave(x, times, size, out, *_):
    put(out, x.repeat_interleave(times))


@kernel("Flip")
def flip(x, dims, out, *_):
    put(out, x.flip(dims))


@kernel("Roll")
def roll(x, shifts, dims, out, *_):
    put(out, x.roll(shifts, dims))


@kernel("Tril")
def tril(x, diagonal, out, *_):
    put(out, x.tril(diagonal))


@kernel("Triu")
def triu(x, diagonal, out, *_):
    put(out, x.triu(diagonal))


@kernel("InplaceTril")
def tril_in_place(x, diagonal, *_):
    x.tril_(diagonal)


@kernel("InplaceTriu")
def triu_in_place(x, diagonal, *_):
    x.triu_(diagonal)


@kernel("ConstantPadNd")
def pad(x, widths, value, out, *_):
    put(out, F.pad(x, widths, value=value))


@kernel("ReflectionPad2d")
def pad_reflect(x, widths, out, *_):
    put(out, F.pad(x, widths, mode="reflect"))


@kernel("ReplicationPad2d")
def pad_replicate(x, widths, out, *_):
    put(out, F.pad(x, widths, mode="replicate"))


@kernel("Permute")
def permute(x, dims, out, *_):
    put(out, x.permute(dims))


def resize(mode: str, align: bool):
    def kernel_function(x, size, *rest):
        options = {"align_corners": flag(rest[0])} if align else {}
        put(rest[-1], F.interpolate(x.float(), size=tuple(size), mode=mode, **options))

    return kernel_function


kernel("UpsampleNearest2d", "UpsampleNearest2dV2")(resize("nearest", align=False))
kernel("UpsampleNearestExact2d")(resize("nearest-exact", align=False))
kernel("UpsampleBilinear2d")(resize("bilinear", align=True))
kernel("UpsampleBicubic2d")(resize("bicubic", align=True))


@kernel("GridSampler2D")
def grid_sample(x, grid, mode, padding, align, out, *_):
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    put(out, F.grid_sample(x.float(), grid.float(), modes[mode & 0xFF], paddings[padding & 0xFF], flag(align)))
