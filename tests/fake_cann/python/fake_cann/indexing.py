"""Operators that read or write where other tensors say."""

import torch
import torch.nn.functional as F

from .bridge import set_shape
from .table import Table, flag, put, wide

table = Table()
kernel = table.kernel


def index_tuple(indices: list) -> tuple:
    """One entry a dimension; CANN spells an absent index as an empty tensor or a null pointer."""
    absent = [not isinstance(i, torch.Tensor) or (i.numel() == 0 and i.dim() == 1) for i in indices]
    return tuple(None if gone else index for index, gone in zip(indices, absent))


@kernel("Embedding")
def embedding(weight, indices, out, *_):
    put(out, F.embedding(indices, weight))


@kernel("IndexSelect")
def index_select(x, dim, index, out, *_):
    put(out, x.index_select(dim, index))


@kernel("Gather")
def gather(x, dim, index, out, *_):
    put(out, x.gather(dim, index))


@kernel("ScatterAdd")
def scatter_add(x, dim, index, source, out, *_):
    put(out, wide(x).scatter_add(dim, index, wide(source)))


@kernel("Scatter", "ScatterValue")
def scatter(x, dim, index, source, reduce, out, *_):
    put(out, x.scatter(dim, index, source))


@kernel("InplaceScatter", "InplaceScatterValue")
def scatter_in_place(x, dim, index, source, *_):
    x.scatter_(dim, index, source)


@kernel("Index")
def index(x, indices, out, *_):
    put(out, x[tuple(slice(None) if i is None else i for i in index_tuple(indices))])


@kernel("IndexPutImpl")
def index_put(x, indices, values, accumulate, *_):
    torch.ops.aten.index_put_(x, list(index_tuple(indices)), values, flag(accumulate))


@kernel("InplaceIndexCopy")
def index_copy(x, dim, index, source, *_):
    x.index_copy_(dim, index, source)


@kernel("IndexCopy")
def index_copy_out(x, dim, index, source, out, *_):
    put(out, x.index_copy(dim, index, source))


@kernel("IndexAdd", "IndexAddV2")
def index_add(x, dim, index, source, alpha, out, *_):
    put(out, x.index_add(dim, index, source, alpha=alpha))


@kernel("InplaceIndexFill", "InplaceIndexFillScalar")
def index_fill(x, dim, index, value, *_):
    x.index_fill_(dim, torch.tensor(index, device="cpu") if isinstance(index, list) else index, value)


@kernel("InplaceScatterUpdate")
def scatter_update(x, index, updates, axis, *_):
    """npu_scatter: row b of x gets updates[b] from index[b] on, along axis."""
    for batch, start in enumerate(index.view(-1).tolist()):
        x[batch].narrow(axis - 1, start, updates.shape[axis]).copy_(updates[batch])


@kernel("InplaceMaskedFillScalar")
def masked_fill(x, mask, value, *_):
    x.masked_fill_(mask, value)


@kernel("InplaceMaskedFillTensor")
def masked_fill_tensor(x, mask, value, *_):
    x.masked_fill_(mask, value.item())


@kernel("InplaceMaskedScatter")
def masked_scatter(x, mask, source, *_):
    x.masked_scatter_(mask, source)


@kernel("MaskedSelect", raw=True)
def masked_select(x, mask, out, *rest):
    values = x.masked_select(mask)
    out.view(-1)[: values.numel()] = values
    set_shape(rest[-1][2], values.numel())


@kernel("Nonzero", raw=True)
def nonzero(x, out, *rest):
    found = x.nonzero()
    out.view(-1)[: found.numel()] = found.reshape(-1)
    set_shape(rest[-1][1], *found.shape)


@kernel("NonzeroV2", raw=True)
def nonzero_transposed(x, out, *rest):
    found = x.nonzero().t().contiguous()
    out.view(-1)[: found.numel()] = found.reshape(-1)
    set_shape(rest[-1][1], *found.shape)
