"""The weights of a component in one file, as ComfyUI's model folders have them, instead of a folder.

Names are the hub's, with or without the prefixes that files of whole models have. What the component is built from, its
config.json, comes from the checkpoint's folder.
"""

from pathlib import Path

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


def weights_at(path: Path) -> Weights:
    """The weights of a component's folder, or of a single file."""
    return Weights(path) if path.is_dir() else WeightFile(path)
