"""What every kernel file shares: the table of kernels, and how results are written and arguments read.

A kernel gets the operator's arguments in CANN's order, tensors as views of "device" memory; it writes its outputs,
which are among them, with `put`. Arguments that the C interface adds at the end are swallowed by `*_`.
"""

from collections.abc import Callable

import torch

HALVES = (torch.float16, torch.bfloat16)


class Table:
    """name -> (function, whether it takes `reals`, whether it takes `raw`)."""

    def __init__(self) -> None:
        self.kernels: dict[str, tuple[Callable, bool, bool]] = {}

    def kernel(self, *names: str, reals: bool = False, raw: bool = False):
        """Registers a function for `aclnn<name>`.

        reals: its first argument is the list of the call's doubles, which the C interface passes apart.
        raw: its last argument is the list of undecoded arguments, to change an output's shape.
        """

        def register(function: Callable) -> Callable:
            for name in names:
                self.kernels[f"aclnn{name}"] = (function, reals, raw)
            return function

        return register


def put(out: torch.Tensor, value: torch.Tensor) -> None:
    """Writes the result with the output's shape and dtype."""
    out.copy_(value.reshape(out.shape) if value.numel() == out.numel() else value)


def wide(value):
    """Half-precision tensors as float32, in which CANN's kernels accumulate; anything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


def flag(value: int) -> bool:
    """A C bool: one byte of a register whose other bytes hold anything."""
    return bool(value & 0xFF)


def optional(value):
    """A tensor, or None for the null pointer."""
    return value if isinstance(value, torch.Tensor) else None


def axes(dims: list[int], tensor: torch.Tensor) -> list[int]:
    """CANN's empty list of dimensions means all of them."""
    return dims or list(range(tensor.dim()))
