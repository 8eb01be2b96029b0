"""What is written of a component whose weights are rounded, and writing it tensor by tensor into its place."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import CheckpointError
from ..models.weight_forms import layer_form, rounded
from .formats import MARK, mark
from .stored import Stored
from .weights import STORED, Weights, finite_flag, not_finite

ROWS = 4096  # of a matrix that are rounded at once, which bounds the memory of float32 copies
NAMES = {dtype: name for name, dtype in STORED.items()} | {torch.int8: "I8", torch.uint8: "U8"}
Part = tuple[str, torch.dtype, tuple[int, ...]]  # a tensor to be written: key, dtype, shape


def of_shard(weights: Weights, shard: Path) -> dict[str, Stored]:
    """The tensors that lie in a shard, by the model's keys."""
    return {key: tensor for key, tensor in weights.layout.tensors.items() if tensor.entry.shard == shard}


def all_parts(weights: Weights, form: str) -> Iterator[tuple[Path, Part]]:
    """(shard of the source, what is written) of a whole component in a form."""
    for shard in weights.shards:
        for key, tensor in of_shard(weights, shard).items():
            for part in parts(key, tensor, form):
                yield shard, part


def _form_of(key: str, tensor: Stored, form: str) -> str | None:
    layer, _, name = key.rpartition(".")
    return layer_form(form, layer, tensor.shape[-1]) if name == "weight" and len(tensor.shape) == 2 else None


def parts(key: str, tensor: Stored, form: str) -> list[Part]:
    """What is written for a tensor of the source."""
    own = _form_of(key, tensor, form)
    if own is None:
        return [(key, STORED[tensor.dtype], tensor.shape)]
    layer = key.rpartition(".")[0]
    return [(f"{layer}.{name}", *about) for name, about in _about_parts(tensor.shape, own).items()]


@cache
def _about_parts(shape: tuple[int, ...], form: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of what is written for a matrix; a network has few shapes of them."""
    made = _stored_parts(torch.empty(shape, device="meta"), form)
    return {name: (part.dtype, tuple(part.shape)) for name, part in made.items()}


def _stored_parts(weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """A matrix as files hold it: a scale of 8 bits in float32, as ComfyUI's, those of 4 bits in bfloat16."""
    blocks = [rounded(block, form) for block in weight.split(ROWS)]
    joined = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    short = {name: t.bfloat16() if form == "w4" and t.is_floating_point() else t for name, t in joined.items()}
    return short | {MARK: mark(form)}


def nbytes(part: Part) -> int:
    return torch.Size(part[2]).numel() * part[1].itemsize


def header_of(written: list[Part]) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file of these, and where in the file each begins."""
    entries, places, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for part in sorted(written, key=lambda part: -part[1].itemsize):  # each lies where its dtype may begin
        key, dtype, shape = part
        places[key], end = end, end + nbytes(part)
        entries[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [places[key], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {key: 8 + len(text) + place for key, place in places.items()}


def write(out: BinaryIO, file, tensors: dict[str, Stored], form: str, places: dict[str, int]) -> Iterator[int]:
    """Write tensors of the open shard `file`, each into its place; yields bytes of the source that are done."""
    for key, tensor in tensors.items():
        for name, part in _read_parts(key, tensor, form, file).items():
            out.seek(places[name])
            out.write(part.contiguous().flatten().view(torch.uint8).numpy())
        yield tensor.nbytes


def _read_parts(key: str, tensor: Stored, form: str, file) -> dict[str, torch.Tensor]:
    own, weight = _form_of(key, tensor, form), tensor.read(file)
    if not_finite({key: finite_flag(weight)}):
        raise CheckpointError(f"{tensor.entry.shard}: {key} holds NaN or infinite numbers; the file is damaged")
    if own is None:
        return {key: weight.to(STORED[tensor.dtype])}
    layer = key.rpartition(".")[0]
    return {f"{layer}.{name}": part for name, part in _stored_parts(weight, own).items()}
