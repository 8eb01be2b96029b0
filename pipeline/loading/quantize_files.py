"""Planner and decoder rounded to 8 or 4 bits as single files, in the folders where ComfyUI looks for them.

A file grows as `NAME.partial` beside its place: shard after shard of the source, each tensor where it belongs. What is
finished is noted in `NAME.partial.json`, so that an interrupted run goes on with the next shard. The whole files take
their names at the end.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, FileError
from ..files import errors_about, write_text
from ..progress import Progress
from .checkpoint import MODEL_FOLDERS, Checkpoint, title
from .quantize import check_forms, check_room, description_of
from .rounding import all_parts, header_of, nbytes, of_shard, write


@dataclass(frozen=True)
class FileQuantization:
    """Which files to make of a checkpoint in the folder `out`, such as ComfyUI's models: `forms` of planner and
    decoder, "w8" or "w4". Everything that can be wrong is an error here, before anything is written.
    """

    checkpoint: Checkpoint
    out: Path
    forms: Mapping[str, str]

    def __post_init__(self):
        check_forms(self.checkpoint, self.forms)
        for folder in (self.out, *(self.target(name).parent for name in self.forms)):
            if folder.exists() and not folder.is_dir():
                raise FileError(f"{folder} is a file; give a folder, such as ComfyUI's models")
        for name in self.forms:
            if self.target(name).exists():
                raise FileError(f"{self.target(name)} is there already; remove it, or give another folder")
            if self.partial(name).exists() and self._noted(name).get("run") != self.run(name):
                raise FileError(f"{self.partial(name)} belongs to another checkpoint; remove it")
        check_room(self.out, sum(self.missing(name) for name in self.forms))

    def target(self, component: str) -> Path:
        name = f"glm_image_{title(component)}_{self.forms[component]}.safetensors"
        return self.out / MODEL_FOLDERS[component] / name

    def partial(self, component: str) -> Path:
        return self.target(component).with_suffix(".safetensors.partial")

    def note(self, component: str) -> Path:
        return self.target(component).with_suffix(".safetensors.partial.json")

    def run(self, component: str) -> str:
        return description_of(self.checkpoint, {component: self.forms[component]})

    def done(self, component: str) -> list[str]:
        """Shards whose tensors are in the partial file: none where it became shorter since that was noted."""
        noted, partial = self._noted(component), self.partial(component)
        whole = partial.exists() and partial.stat().st_size >= noted.get("bytes", 0)
        return noted.get("shards", []) if whole else []

    def _noted(self, component: str) -> dict:
        try:
            return dict(json.loads(self.note(component).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def missing(self, component: str) -> int:
        """Bytes that are still to be written."""
        made = all_parts(self.checkpoint.weights(component), self.forms[component])
        done = self.done(component)
        return sum(nbytes(part) for shard, part in made if shard.name not in done)


def quantize_to_files(job: FileQuantization, progress: Progress | None = None) -> list[Path]:
    """Write the files, or what is missing of them. `progress` counts bytes of the source; it may raise to interrupt.

    Files take their names when all are whole, so that the same job goes on until then. A source that turns out to be
    damaged leaves nothing.
    """
    try:
        for name in job.forms:
            with errors_about(job.target(name)):
                _write_component(job, name, progress)
    except CheckpointError:
        for name in job.forms:
            job.partial(name).unlink(missing_ok=True)
            job.note(name).unlink(missing_ok=True)
        raise
    for name in job.forms:
        with errors_about(job.target(name)):
            os.replace(job.partial(name), job.target(name))
            job.note(name).unlink()
    return [job.target(name) for name in job.forms]


def _write_component(job: FileQuantization, component: str, progress: Progress | None) -> None:
    weights, form, partial = job.checkpoint.weights(component), job.forms[component], job.partial(component)
    head, places = header_of([part for _, part in all_parts(weights, form)])
    finished, done, total = job.done(component), 0, weights.nbytes
    partial.parent.mkdir(parents=True, exist_ok=True)
    _note(job, component, finished)
    with partial.open("r+b" if finished else "wb") as out:
        out.write(head)
        for shard in weights.shards:
            tensors = of_shard(weights, shard)
            if shard.name in finished:
                done += sum(tensor.nbytes for tensor in tensors.values())
                continue
            with weights.open(shard) as file:
                for size in write(out, file, tensors, form, places):
                    done += size
                    if progress:
                        progress(done, total, stage="quantize", component=component)
            out.flush()
            os.fsync(out.fileno())
            finished = [*finished, shard.name]
            _note(job, component, finished)


def _note(job: FileQuantization, component: str, finished: list[str]) -> None:
    size = job.partial(component).stat().st_size if finished else 0
    write_text(job.note(component), json.dumps({"run": job.run(component), "shards": finished, "bytes": size}))
