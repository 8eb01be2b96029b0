"""Where a tensor of a model lies in weight files: one entry as it is, or several that make it together."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, InputError

ADVICE = "round the checkpoint's own bf16 weights instead: 'glm-image quantize MODEL -o OUT --planner w8 --decoder w8'"
FLOATS = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}  # names of dtypes -> bytes of a number


@dataclass(frozen=True)
class Entry:
    """A tensor as a file has it: its shard, its key there, shape, dtype's name and bytes."""

    shard: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Stored:
    """A tensor as the model has it: an entry, or what `widen` makes of the entry and of `others`, its scales."""

    entry: Entry
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    others: tuple[Entry, ...] = ()
    widen: Callable[..., torch.Tensor] | None = None

    def read(self, file) -> torch.Tensor:
        """From the open shard of the entry; what lies in another shard is read from there."""
        tensor = file.get_tensor(self.entry.key)
        return self.widen(tensor, *(self._other(entry, file) for entry in self.others)) if self.widen else tensor

    def _other(self, entry: Entry, file) -> torch.Tensor:
        here = entry.shard == self.entry.shard
        with contextlib.nullcontext(file) if here else open_shard(entry.shard) as its:
            return its.get_tensor(entry.key)


@dataclass
class Layout:
    """`tensors` by the model's keys, and `forms`: layer -> "w8" or "w4" for those that lie in such a form."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)


def refuse(source: Path, name: str) -> None:
    """Raise `CheckpointError` for weights in a format that is not read."""
    raise CheckpointError(f"{source} holds weights in {name}, a format that is not read; {ADVICE}")


def check_rounding(component: str, held: str | None, wanted: str | None) -> None:
    """Refuse to round weights that lie in another form ("w8", "w4") than the `wanted` one; other words ask for none."""
    if held and wanted in ("w8", "w4") and held != wanted:
        raise InputError(
            f"the {component}'s weights are rounded to {held} already, not to {wanted}; choose auto or {held}, or give "
            "whole weights"
        )


def open_shard(shard: Path) -> safe_open:
    """A safetensors file, mapped; raises `CheckpointError` for one whose head lies about what follows."""
    try:
        return safe_open(shard, "pt")
    except SafetensorError as error:
        raise damaged(shard, error) from None


def damaged(shard: Path, error: SafetensorError) -> CheckpointError:
    """The error about a file that safetensors does not read."""
    return CheckpointError(f"{shard} is damaged: {error}; download it again")
