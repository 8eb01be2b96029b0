"""Reading one GGUF file by the package gguf (extra: gguf): whole numbers as they lie, codes of 8 and 4 bits widened.

Names are the hub's, as in every single file; llama.cpp has none for these networks. Codes become the float32 numbers
that gguf itself makes of them. K-quants are not read, for the planner's rows of 13696 are no multiple of their 256.
"""

import math
from functools import cached_property
from importlib import import_module
from pathlib import Path

import torch

from ..errors import CheckpointError
from .stored import Entry, Stored, refuse

MAGIC = b"GGUF"
WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = ("Q8_0", "Q4_0", "Q4_1")
DAMAGES = (ValueError, LookupError, TypeError, OverflowError, MemoryError)  # what gguf raises for files that are none
LLAMA = ("blk.", "token_embd.", "output_norm.", "v.")  # beginnings of llama.cpp's names


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class GgufFile:
    """The tensors of a file by its own names."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def tensors(self) -> dict:
        """gguf's records; raises `CheckpointError` for a file that is not whole, or one of several."""
        reader = _package("gguf_reader").GGUFReader
        try:
            file = reader(self.path, "c")  # "copy on write", without which torch warns of memory it must not write
            parts = file.fields.get("split.count")
            split = parts is not None and int(parts.parts[-1][0]) > 1
        except AttributeError as error:  # of numpy, where gguf is older than it
            raise CheckpointError(f"the package gguf is too old ({error}); run 'pip install -U gguf'") from None
        except DAMAGES as error:
            if "GGMLQuantizationType" in str(error):
                refuse(self.path, f"a GGUF type that this version of gguf does not know ({error})")
            raise CheckpointError(f"{self.path} is not a whole GGUF file ({error}); download it again") from None
        if split:
            raise CheckpointError(f"{self.path} is one of several files; join them by 'llama-gguf-split --merge'")
        if file.byte_order != "I":
            refuse(self.path, "GGUF of big-endian machines")
        return {tensor.name: tensor for tensor in file.tensors}

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Raises for names and types that are not read."""
        found = {}
        for key, tensor in self.tensors.items():
            kind = tensor.tensor_type.name
            if key.startswith(LLAMA):
                raise CheckpointError(f"{self.path} has llama.cpp's names ({key}); only the hub's are read")
            if kind not in WHOLE and kind not in CODES:
                refuse(self.path, f"GGUF's {kind}; {', '.join((*WHOLE, *CODES))} are read")
            found[key] = Entry(self.path, key, _shape(tensor), kind, int(tensor.n_bytes))
        return found

    def get_tensor(self, key: str) -> torch.Tensor:
        tensor = self.tensors[key]
        if dtype := WHOLE.get(tensor.tensor_type.name):
            return torch.from_numpy(tensor.data).view(dtype).reshape(_shape(tensor))
        return torch.from_numpy(_package("quants").dequantize(tensor.data, tensor.tensor_type)).reshape(_shape(tensor))


def stored(entry: Entry) -> Stored:
    """A tensor as the model has it; codes count as bfloat16, as those of other formats that are widened."""
    if entry.dtype in WHOLE:
        return Stored(entry, entry.shape, entry.dtype, entry.nbytes)
    return Stored(entry, entry.shape, "BF16", 2 * math.prod(entry.shape))


def _shape(tensor) -> tuple[int, ...]:
    """GGUF has the innermost dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _package(name: str):
    """A module of gguf, which is imported for such files only."""
    try:
        return import_module(f"gguf.{name}")
    except ImportError as error:
        raise CheckpointError(f"GGUF is read by the package gguf ({error}); run 'pip install gguf'") from None
