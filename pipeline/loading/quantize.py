"""A checkpoint's folder with planner and decoder rounded to 8 or 4 bits; opening it rounds nothing.

Shard by shard and tensor by tensor: a shard of the source is mapped, one matrix is rounded at a time. Everything goes
to `OUT.partial`, each file whole or not at all, and takes the name `OUT` when it is complete. What an interrupted run
has finished is kept, and the same command goes on from there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, FileError, InputError
from ..files import errors_about, replacing, write_text
from ..models.weight_forms import FORMS
from ..progress import Progress
from .checkpoint import DECODER, PATTERNS, PLANNER, Checkpoint, title
from .components import check_files
from .rounding import all_parts, header_of, nbytes, of_shard, parts, write
from .weights import WEIGHT_NAMES, Weights

NAMES = dict(zip((PLANNER, DECODER), WEIGHT_NAMES))  # of the one file of a component
RUN = "quantize.json"  # in OUT.partial: what is being made there


def check_forms(checkpoint: Checkpoint, forms: Mapping[str, str]) -> None:
    """Raise for forms that these weights cannot have, and for a checkpoint that is not whole."""
    checkpoint.check()
    check_files(checkpoint)
    for name in checkpoint.files.keys() - forms.keys():
        raise InputError(f"a file is given for the {title(name)}, which is not rounded; leave it out")
    for name, form in forms.items():
        if name not in (PLANNER, DECODER) or form not in FORMS:
            raise InputError(f"{name} cannot become {form!r}; planner and decoder become {' or '.join(FORMS)}")
        if checkpoint.weights(name).forms:
            source = checkpoint.weights(name).folder
            raise InputError(f"the {title(name)} in {source} is rounded already; give whole weights")
        for shard in checkpoint.weights(name).shards:
            with checkpoint.weights(name).open(shard):
                pass  # a head that lies is an error now


def check_room(out: Path, wanted: int) -> None:
    """Raise `FileError` if the disk of `out` has fewer free bytes."""
    home = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(home).free
    if wanted > free:
        raise FileError(f"{out} needs {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} are free on that disk")


def description_of(checkpoint: Checkpoint, forms: Mapping[str, str]) -> str:
    """What a run is: the source's weight files with their sizes and times, and the forms."""
    paths = {str(path.relative_to(checkpoint.folder)): path for path in checkpoint.weight_files()}
    paths |= {f"{name} from {path}": path for name, path in checkpoint.files.items()}
    files = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in paths.items()}
    return json.dumps({"files": files, "forms": dict(forms)}, sort_keys=True)


@dataclass(frozen=True)
class Quantization:
    """What to make of a checkpoint in the folder `out`: `forms` of planner and decoder, "w8" or "w4"; one that is left
    out is copied. Everything that can be wrong is an error here, before anything is written.
    """

    checkpoint: Checkpoint
    out: Path
    forms: Mapping[str, str]

    def __post_init__(self):
        check_forms(self.checkpoint, self.forms)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise FileError(f"{self.out} is there already; give another name, or remove it")
        if not self.out.name:
            raise FileError(f"{self.out} is no name of a folder to make")
        if self.run_file.exists() and self.run_file.read_text(encoding="utf-8") != self.run:
            raise FileError(f"{self.partial} belongs to another checkpoint or other forms; remove it")
        done = sum(file.stat().st_size for file in self.partial.rglob("*") if file.is_file())
        check_room(self.out, self.nbytes() - done)

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def run_file(self) -> Path:
        return self.partial / RUN

    @property
    def run(self) -> str:
        return description_of(self.checkpoint, self.forms)

    def copied(self) -> list[Path]:
        """Files of the source that stay as they are, as paths inside it."""
        root = self.checkpoint.folder
        found = {path.relative_to(root) for pattern in PATTERNS for path in root.glob(pattern) if path.is_file()}
        return sorted(path for path in found if path.parts[0] not in self.forms or not _is_of_weights(path))

    def nbytes(self) -> int:
        """What will be written."""
        copied = sum((self.checkpoint.folder / path).stat().st_size for path in self.copied())
        made = (part for name in self.forms for _, part in all_parts(self.checkpoint.weights(name), self.forms[name]))
        return copied + sum(nbytes(part) for part in made)


def _is_of_weights(path: Path) -> bool:
    return path.name.endswith((".safetensors", ".safetensors.index.json"))


def quantize(job: Quantization, progress: Progress | None = None) -> Path:
    """Write the folder, or what is missing of it. `progress` counts bytes of the source; it may raise to interrupt.

    A source that turns out to be damaged leaves nothing: a sound one is another, and goes on with none of it.
    """
    with errors_about(job.partial):
        job.partial.mkdir(parents=True, exist_ok=True)
    write_text(job.run_file, job.run)
    for path in job.copied():
        _copy(job.checkpoint.folder / path, job.partial / path)
    try:
        for name, form in job.forms.items():
            _round_component(job.checkpoint.weights(name), job.partial / name, form, name, progress)
    except CheckpointError:
        shutil.rmtree(job.partial)
        raise
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
        tensors = of_shard(weights, shard)
        target = folder / (shard.name if weights.folder.is_dir() else NAMES[component])
        if not target.exists():
            start, places = header_of([part for key, tensor in tensors.items() for part in parts(key, tensor, form)])
            with replacing(target) as temporary, temporary.open("wb") as out, weights.open(shard) as file:
                out.write(start)
                for size in write(out, file, tensors, form, places):
                    done += size
                    if progress:
                        progress(done, total, stage="quantize", component=component)
        else:
            done += sum(tensor.nbytes for tensor in tensors.values())
    index = next((p for p in (weights.folder / f"{name}.index.json" for name in WEIGHT_NAMES) if p.exists()), None)
    if index:
        made = list(all_parts(weights, form))
        size = {"total_size": sum(nbytes(part) for _, part in made)}
        write_text(
            folder / index.name,
            json.dumps({"metadata": size, "weight_map": {part[0]: shard.name for shard, part in made}}, indent=2),
        )
