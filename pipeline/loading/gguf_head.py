"""The head of a GGUF file: which tensors it holds, of which type, where. Nothing else of the file is read.

Follows ggml's docs/gguf.md, versions 2 and 3. Numbers are little-endian; every length is compared with the file before
it is believed.
"""

import math
import struct
from dataclasses import dataclass

from ..text import shown

ALIGNMENT = 32  # where general.alignment is not given
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # kind of a value -> bytes
UINT16, UINT32, STRING, ARRAY = 2, 4, 8, 9
TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"},
    **{26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20)}


@dataclass(frozen=True)
class Tensor:
    """Its shape as torch has it, its type's name, and its bytes in the file: none for types not in `BLOCKS`."""

    shape: tuple[int, ...]
    kind: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Head:
    version: int
    parts: int  # files that the model was split into
    tensors: dict[str, Tensor]


class Cursor:
    """A place in the file's bytes; raises ValueError where they end too early."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def skip(self, count: int) -> int:
        """Go on by so many bytes; where they begin."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise ValueError(f"it ends before byte {self.at}")
        return start

    def number(self, form: str) -> int:
        start = self.skip(struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{form}", self.data, start)[0]

    def text(self) -> str:
        count = self.number("Q")
        start = self.skip(count)
        return bytes(self.data[start : start + count]).decode()

    def value(self, kind: int) -> int | None:
        """Pass over a value; that of the two kinds of whole numbers that are asked for."""
        if kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            self._array(self.number("I"), self.number("Q"))
        elif kind in (UINT16, UINT32):
            return self.number({UINT16: "H", UINT32: "I"}[kind])
        else:
            self.skip(_size(kind))
        return None

    def _array(self, kind: int, count: int) -> None:
        if kind not in (STRING, ARRAY):
            self.skip(count * _size(kind))
            return
        for _ in range(count):
            self.value(kind)


def _size(kind: int) -> int:
    if kind not in SIZES:
        raise ValueError(f"it has a value of kind {kind}")
    return SIZES[kind]


def read_head(data) -> Head:
    """The whole file's bytes -> its head; raises ValueError for what is no whole GGUF file."""
    cursor = Cursor(data)
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        return Head(version, 1, {})
    count, values = cursor.number("Q"), cursor.number("Q")
    known = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(values)}
    found = [_tensor(cursor) for _ in range(count)]
    alignment = known.get("general.alignment") or ALIGNMENT
    if alignment % 8:
        raise ValueError(f"it aligns to {alignment} bytes")
    begin = -(-cursor.at // alignment) * alignment
    tensors, after = {}, 0
    for name, shape, kind, offset in found:
        nbytes = _nbytes(name, shape, kind)
        if after is not None and offset != after:
            raise ValueError(f"{shown(name)} lies at byte {offset} of the data, where {after} is the next")
        after = -(-(offset + nbytes) // alignment) * alignment if after is not None and kind in BLOCKS else None
        tensors[name] = Tensor(shape, kind, begin + offset, nbytes)
        if tensors[name].start + nbytes > len(data):
            raise ValueError(f"it ends within {shown(name)}")
    if len(tensors) < count:
        raise ValueError("it holds a tensor twice")
    return Head(version, known.get("split.count") or 1, tensors)


def _tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], str, int]:
    """Name, shape with the outermost dimension first, type, and where it lies after the head."""
    name, dimensions = cursor.text(), cursor.number("I")
    start = cursor.skip(8 * dimensions)
    shape = struct.unpack_from(f"<{dimensions}Q", cursor.data, start)[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    return name, shape, TYPES.get(kind, f"type {kind}"), offset


def _nbytes(name: str, shape: tuple[int, ...], kind: str) -> int:
    numbers, nbytes = BLOCKS.get(kind, (1, 0))
    if 0 in shape:
        raise ValueError(f"{name} is empty")
    if (shape or (1,))[-1] % numbers:
        raise ValueError(f"{name} has rows of {shape[-1:]} numbers in {kind}, which are no whole groups of {numbers}")
    return math.prod(shape) // numbers * nbytes
