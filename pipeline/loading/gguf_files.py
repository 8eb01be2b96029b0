"""Tensors of one GGUF file: whole numbers as they lie there, codes of 8 and 4 bits widened by the package gguf.

Names are the hub's, as in every single file; llama.cpp has none for these networks. Codes become the float32 numbers
that gguf (extra: gguf) itself makes of them. K-quants are not read, for the planner's rows of 13696 are no multiple of
their 256.
"""

import math
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy
import torch

from ..errors import CheckpointError
from .gguf_head import Head, Tensor, read_head
from .stored import Entry, Stored, refuse

MAGIC = b"GGUF"
WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = ("Q8_0", "Q4_0", "Q4_1")
LLAMA = ("blk.", "token_embd.", "output_norm.", "v.")  # beginnings of llama.cpp's names


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class GgufFile:
    """The tensors of a file by its own names, mapped from disk."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def data(self) -> numpy.ndarray:
        return numpy.memmap(self.path, mode="c")  # "copy on write", for torch warns of memory it must not write

    @cached_property
    def head(self) -> Head:
        """Raises `CheckpointError` for a file that is not whole, or one of several."""
        try:
            head = read_head(self.data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is not a whole GGUF file: {error}; download it again") from None
        if not head.tensors:
            refuse(self.path, f"GGUF of version {head.version} or of no tensors")
        if head.parts > 1:
            raise CheckpointError(f"{self.path} is one of several files; join them by 'llama-gguf-split --merge'")
        return head

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Raises for names and types that are not read, and where codes need a package that is not there."""
        for key, tensor in self.head.tensors.items():
            if key.startswith(LLAMA):
                raise CheckpointError(f"{self.path} has llama.cpp's names ({key}); only the hub's are read")
            if tensor.kind not in WHOLE and tensor.kind not in CODES:
                refuse(self.path, f"GGUF's {tensor.kind}; {', '.join((*WHOLE, *CODES))} are read")
            if tensor.kind in CODES:
                _package("quants")
        return {key: Entry(self.path, key, t.shape, t.kind, t.nbytes) for key, t in self.head.tensors.items()}

    def get_tensor(self, key: str) -> torch.Tensor:
        tensor = self.head.tensors[key]
        bytes_ = self.data[tensor.start : tensor.start + tensor.nbytes]
        if dtype := WHOLE.get(tensor.kind):
            return torch.from_numpy(bytes_).view(dtype).reshape(tensor.shape)
        return torch.from_numpy(_widened(bytes_, tensor)).reshape(tensor.shape)


def _widened(codes: numpy.ndarray, tensor: Tensor) -> numpy.ndarray:
    kind = _package("constants").GGMLQuantizationType[tensor.kind]
    return _package("quants").dequantize(codes.reshape(*tensor.shape[:-1], -1), kind)


def stored(entry: Entry) -> Stored:
    """A tensor as the model has it; codes count as bfloat16, as those of other formats that are widened."""
    if entry.dtype in WHOLE:
        return Stored(entry, entry.shape, entry.dtype, entry.nbytes)
    return Stored(entry, entry.shape, "BF16", 2 * math.prod(entry.shape))


def _package(name: str):
    """A module of gguf, which is imported for such files only."""
    try:
        return import_module(f"gguf.{name}")
    except ImportError as error:
        raise CheckpointError(f"GGUF is read by the package gguf ({error}); run 'pip install -U gguf'") from None
