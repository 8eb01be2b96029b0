"""Building a network for its names and shapes alone, or to be filled from files: on the meta device, unfilled."""

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules made here have no memory."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are. There is nothing to fill on the meta device, and torch draws the numbers of an
    embedding there by an implementation in Python, for which it imports its compiler: two seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
