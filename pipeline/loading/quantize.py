"""A checkpoint's folder with planner and decoder rounded to 8 or 4 bits; opening it rounds nothing.

Shard by shard and tensor by tensor: a shard of the source is mapped, one matrix is rounded at a time. Everything goes
to `OUT.partial`, each file whole or not at all, and takes the name `OUT` when it is complete. What an interrupted run
has finished is kept, and the same command goes on from there.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import CheckpointError, FileError, InputError
from ..files import replacing, write_text
from ..models.weight_forms import FORMS, layer_form, rounded
from ..progress import Progress
from .checkpoint import DECODER, PATTERNS, PLANNER, Checkpoint, title
from .formats import MARK, mark
from .stored import Stored
from .weights import STORED, WEIGHT_NAMES, Weights

ROWS = 4096  # of a matrix that are rounded at once, which bounds the memory of float32 copies
RUN = "quantize.json"  # in OUT.partial: what is being made there
NAMES = {dtype: name for name, dtype in STORED.items()} | {torch.int8: "I8", torch.uint8: "U8"}
Part = tuple[str, torch.dtype, tuple[int, ...]]  # a tensor to be written: key, dtype, shape


@dataclass(frozen=True)
class Quantization:
    """What to make of a checkpoint in the folder `out`: `forms` of planner and decoder, "w8" or "w4"; one that is left
    out is copied. Everything that can be wrong is an error here, before anything is written.
    """

    checkpoint: Checkpoint
    out: Path
    forms: Mapping[str, str]

    def __post_init__(self):
        self.checkpoint.check()
        for name, form in self.forms.items():
            if name not in (PLANNER, DECODER) or form not in FORMS:
                raise InputError(f"{name} cannot become {form!r}; planner and decoder become {' or '.join(FORMS)}")
            if self.weights(name).forms:
                raise InputError(
                    f"the {title(name)} of {self.checkpoint.folder} is rounded already; give whole weights"
                )
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileError(f"{self.out} is there already; give another name, or remove it")
        if not self.out.name:
            raise FileError(f"{self.out} is no name of a folder to make")
        if self.run_file.exists() and self.run_file.read_text(encoding="utf-8") != self.run:
            raise FileError(f"{self.partial} belongs to another checkpoint or other forms; remove it")
        self._check_room()

    def _check_room(self) -> None:
        home = next(parent for parent in (self.partial, *self.partial.absolute().parents) if parent.exists())
        done = sum(file.stat().st_size for file in self.partial.rglob("*") if file.is_file())
        free, wanted = shutil.disk_usage(home).free, self.nbytes() - done
        if wanted > free:
            raise FileError(f"{self.out} needs {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} are free on that disk")

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def run_file(self) -> Path:
        return self.partial / RUN

    @property
    def run(self) -> str:
        """What a run is: the source's weight files with their sizes and times, and the forms."""
        files = {
            str(path.relative_to(self.checkpoint.folder)): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in self.checkpoint.weight_files()
        }
        return json.dumps({"files": files, "forms": dict(self.forms)}, sort_keys=True)

    def weights(self, component: str) -> Weights:
        return Weights(self.checkpoint.component(component))

    def copied(self) -> list[Path]:
        """Files of the source that stay as they are, as paths inside it."""
        root = self.checkpoint.folder
        found = {path.relative_to(root) for pattern in PATTERNS for path in root.glob(pattern) if path.is_file()}
        return sorted(path for path in found if path.parts[0] not in self.forms or not _is_of_weights(path))

    def nbytes(self) -> int:
        """What will be written."""
        copied = sum((self.checkpoint.folder / path).stat().st_size for path in self.copied())
        made = (part for name in self.forms for _, part in _all_parts(self.weights(name), self.forms[name]))
        return copied + sum(_nbytes(part) for part in made)


def _is_of_weights(path: Path) -> bool:
    return path.name.endswith((".safetensors", ".safetensors.index.json"))


def quantize(job: Quantization, progress: Progress | None = None) -> Path:
    """Write the folder, or what is missing of it. `progress` counts bytes of the source; it may raise to interrupt."""
    job.partial.mkdir(parents=True, exist_ok=True)
    write_text(job.run_file, job.run)
    for path in job.copied():
        _copy(job.checkpoint.folder / path, job.partial / path)
    for name, form in job.forms.items():
        _round_component(job.weights(name), job.partial / name, form, name, progress)
    if job.out.is_dir():
        job.out.rmdir()  # an empty one, of which Windows lets nothing take the place
    job.run_file.unlink()
    os.replace(job.partial, job.out)
    return job.out


def _copy(source: Path, target: Path) -> None:
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def _round_component(weights: Weights, folder: Path, form: str, component: str, progress: Progress | None) -> None:
    """All shards under their names; then the index, if there is one."""
    folder.mkdir(exist_ok=True)
    done, total = 0, weights.nbytes
    for shard in weights.shards:
        tensors = _of_shard(weights, shard)
        if not (folder / shard.name).exists():
            with replacing(folder / shard.name) as temporary, safe_open(shard, "pt") as file:
                for nbytes in _write(temporary, file, tensors, form):
                    done += nbytes
                    if progress:
                        progress(done, total, stage="quantize", component=component)
        else:
            done += sum(tensor.nbytes for tensor in tensors.values())
    index = next((p for p in (weights.folder / f"{name}.index.json" for name in WEIGHT_NAMES) if p.exists()), None)
    if index:
        parts = list(_all_parts(weights, form))
        size = {"total_size": sum(_nbytes(part) for _, part in parts)}
        write_text(
            folder / index.name,
            json.dumps({"metadata": size, "weight_map": {part[0]: shard.name for shard, part in parts}}, indent=2),
        )


def _of_shard(weights: Weights, shard: Path) -> dict[str, Stored]:
    return {key: tensor for key, tensor in weights.layout.tensors.items() if tensor.entry.shard == shard}


def _all_parts(weights: Weights, form: str) -> Iterator[tuple[Path, Part]]:
    for shard in weights.shards:
        for key, tensor in _of_shard(weights, shard).items():
            for part in _parts(key, tensor, form):
                yield shard, part


def _form_of(key: str, tensor: Stored, form: str) -> str | None:
    layer, _, name = key.rpartition(".")
    return layer_form(form, layer, tensor.shape[-1]) if name == "weight" and len(tensor.shape) == 2 else None


def _parts(key: str, tensor: Stored, form: str) -> list[Part]:
    """What is written for a tensor of the source."""
    own = _form_of(key, tensor, form)
    if own is None:
        return [(key, STORED[tensor.dtype], tensor.shape)]
    layer = key.rpartition(".")[0]
    made = _stored_parts(torch.empty(tensor.shape, device="meta"), own)
    return [(f"{layer}.{name}", part.dtype, tuple(part.shape)) for name, part in made.items()]


def _stored_parts(weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """A matrix as files hold it: a scale of 8 bits in float32, as ComfyUI's, those of 4 bits in bfloat16."""
    blocks = [rounded(block, form) for block in weight.split(ROWS)]
    joined = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    short = {name: t.bfloat16() if form == "w4" and t.is_floating_point() else t for name, t in joined.items()}
    return short | {MARK: mark(form)}


def _nbytes(part: Part) -> int:
    return torch.Size(part[2]).numel() * part[1].itemsize


def _write(path: Path, file, tensors: dict[str, Stored], form: str) -> Iterator[int]:
    """Write one shard, matrix by matrix into its place; yields bytes of the source that are done."""
    parts = [part for key, tensor in tensors.items() for part in _parts(key, tensor, form)]
    parts.sort(key=lambda part: -part[1].itemsize)  # every tensor then lies where its dtype may begin
    header, places, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for key, dtype, shape in parts:
        size = _nbytes((key, dtype, shape))
        header[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        places[key], end = end, end + size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in tensors.items():
            for name, part in _read_parts(key, tensor, form, file).items():
                out.seek(8 + len(text) + places[name])
                out.write(part.contiguous().flatten().view(torch.uint8).numpy())
            yield tensor.nbytes


def _read_parts(key: str, tensor: Stored, form: str, file) -> dict[str, torch.Tensor]:
    own, weight = _form_of(key, tensor, form), tensor.read(file)
    if own is None:
        return {key: weight}
    if not torch.isfinite(torch.stack(weight.aminmax())).all():
        raise CheckpointError(f"{tensor.entry.shard}: {key} holds NaN or infinite numbers; the file is damaged")
    layer = key.rpartition(".")[0]
    return {f"{layer}.{name}": part for name, part in _stored_parts(weight, own).items()}
