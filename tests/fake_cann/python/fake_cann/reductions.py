"""Operators that reduce, sort or accumulate along dimensions."""

import torch

from .bridge import set_shape
from .table import Table, axes, flag, put, wide

table = Table()
kernel = table.kernel


@kernel("ReduceSum")
def reduce_sum(x, dims, keep, dtype, out, *_):
    put(out, wide(x).sum(axes(dims, x), keepdim=flag(keep)))


@kernel("Mean", "MeanV2")
def mean(x, dims, keep, *rest):
    put(rest[-1], wide(x).mean(axes(dims, x), keepdim=flag(keep)))


@kernel("VarMean")
def var_mean(x, dims, correction, keep, variance, average, *_):
    v, m = torch.var_mean(wide(x), dims or None, correction=correction, keepdim=flag(keep))
    put(variance, v)
    put(average, m)


@kernel("Any")
def any_(x, dims, keep, out, *_):
    put(out, torch.any(x.bool(), dim=tuple(axes(dims, x)), keepdim=flag(keep)) if x.dim() else x.bool())


@kernel("All")
def all_(x, dims, keep, out, *_):
    put(out, torch.all(x.bool(), dim=tuple(axes(dims, x)), keepdim=flag(keep)) if x.dim() else x.bool())


@kernel("Max")
def max_(x, out, *_):
    put(out, x.max())


@kernel("Min")
def min_(x, out, *_):
    put(out, x.min())


@kernel("Amax")
def amax(x, dims, keep, out, *_):
    put(out, x.amax(axes(dims, x), keepdim=flag(keep)))


@kernel("Amin")
def amin(x, dims, keep, out, *_):
    put(out, x.amin(axes(dims, x), keepdim=flag(keep)))


@kernel("MaxDim")
def max_dim(x, dim, keep, values, indices, *_):
    v, i = x.max(dim, keepdim=flag(keep))
    put(values, v)
    put(indices, i)


@kernel("ArgMax")
def argmax(x, dim, keep, out, *_):
    put(out, x.argmax(dim, keepdim=flag(keep)))


@kernel("ArgMin")
def argmin(x, dim, keep, out, *_):
    put(out, x.argmin(dim, keepdim=flag(keep)))


@kernel("Topk", "TopkV2")
def topk(x, k, dim, largest, sort, *rest):
    v, i = x.topk(k, dim, flag(largest), flag(sort))
    put(rest[-2], v)
    put(rest[-1], i)


@kernel("Sort")
def sort(x, stable, dim, descending, values, indices, *_):
    v, i = torch.sort(x, stable=flag(stable), dim=dim, descending=flag(descending))
    put(values, v)
    put(indices, i)


@kernel("Cumsum", "CumsumV2")
def cumsum(x, dim, *rest):
    out = rest[-1]
    put(out, x.cumsum(dim, dtype=out.dtype))


@kernel("LinalgVectorNorm")
def vector_norm(x, order, dims, keep, dtype, out, *_):
    put(out, torch.linalg.vector_norm(wide(x), order, dims or None, flag(keep)))


@kernel("Softmax")
def softmax(x, dim, out, *_):
    put(out, wide(x).softmax(dim))


@kernel("LogSoftmax")
def log_softmax(x, dim, out, *_):
    put(out, wide(x).log_softmax(dim))


@kernel("Multinomial")
def multinomial(weights, count, replacement, *rest):
    put(rest[-1], torch.multinomial(wide(weights), count, flag(replacement)))


@kernel("Cdist")
def cdist(x, y, order, *rest):
    put(next(value for value in reversed(rest) if isinstance(value, torch.Tensor)), torch.cdist(x, y))


@kernel("Unique2", "Unique", raw=True)
def unique(x, *rest):
    *arguments, raw = rest
    index = next(i for i, value in enumerate(arguments) if isinstance(value, torch.Tensor))
    values = torch.unique(x)
    arguments[index].view(-1)[: values.numel()] = values
    set_shape(raw[index + 1], values.numel())
