"""The weights of a component in one file, as ComfyUI's model folders have them, instead of a folder.

Names are the hub's, with or without the prefixes that files of whole models have. What the component is built from, its
config.json, comes from the checkpoint's folder.
"""

import contextlib
from functools import cached_property
from pathlib import Path

from .gguf_files import GgufFile, is_gguf, stored
from .stored import Entry, Layout
from .weights import Weights


class WeightFile(Weights):
    """One safetensors file instead of a component folder; a prefix that checkpoints of one file have is dropped."""

    prefixes = ("model.diffusion_model.", "diffusion_model.")

    @property
    def shards(self) -> list[Path]:
        return [self.folder]

    def name(self, key: str) -> str:
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        return key


class GgufWeights(WeightFile):
    """One GGUF file instead of a component folder."""

    @cached_property
    def file(self) -> GgufFile:
        return GgufFile(self.folder)

    def held(self, shard: Path) -> dict[str, Entry]:
        return self.file.entries

    @cached_property
    def layout(self) -> Layout:
        return Layout({key: stored(entry) for key, entry in self.entries.items()})

    def open(self, shard: Path) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext(self.file)


def weights_at(path: Path) -> Weights:
    """The weights of a component's folder, or of a single file."""
    if path.is_dir():
        return Weights(path)
    return GgufWeights(path) if is_gguf(path) else WeightFile(path)
