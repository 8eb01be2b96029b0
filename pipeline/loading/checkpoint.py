"""A checkpoint's folder in the hub's layout: found or downloaded, and checked before anything is read."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..models.config import read_json
from .weights import Weights

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints" / "small"  # comes with the package
HUB_ID = "zai-org/GLM-Image"
PLANNER, GLYPH, DECODER, VAE = COMPONENTS = ("vision_language_encoder", "text_encoder", "transformer", "vae")
PATTERNS = ("model_index.json", "scheduler/*", "processor/*", "tokenizer/*", *(f"{name}/*" for name in COMPONENTS))


def title(component: str) -> str:
    """The component's name for people."""
    return {PLANNER: "planner", GLYPH: "glyph encoder", DECODER: "decoder", VAE: "VAE"}[component]


def resolve(path_or_id: str | os.PathLike, revision: str | None = None, local_only: bool = False) -> "Checkpoint":
    """A folder, a hub id (`owner/name`, optional `revision`) or `modelscope:owner/name` -> a checkpoint on disk.

    "small" is the bundled one. Downloads resume, show progress and fetch only the files the pipeline reads. A folder
    wins over an id of the same spelling.
    """
    name = os.fspath(path_or_id)
    path = named_folder(name)
    if path.is_dir():
        return Checkpoint(path, name, revision)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the checkpoint's folder, the one that holds model_index.json")
    if name.startswith("modelscope:"):
        return _from_modelscope(name, revision)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name} does not exist; give a folder or a hub id such as {HUB_ID}")
    return _from_hub(name, revision, local_only)


def named_folder(name: str) -> Path:
    """Where a checkpoint of this name would be on disk; "small" is the bundled one."""
    return BUNDLED if name == "small" else Path(name).expanduser()


def _from_hub(name: str, revision: str | None, local_only: bool) -> "Checkpoint":
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(PATTERNS),
            ignore_patterns=["*.bin"],
            local_files_only=local_only,
        )
    except RepositoryNotFoundError:
        raise CheckpointError(f"the hub has no model {name}, or it needs a login; check the spelling") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name} is not on this machine and the hub cannot be reached; run 'glm-image download' when it can"
        ) from None
    except HfHubHTTPError as error:
        raise CheckpointError(f"downloading {name} failed: {error}; run the same command again to resume") from None
    return Checkpoint(Path(folder), name, Path(folder).name)


def _from_modelscope(name: str, revision: str | None) -> "Checkpoint":
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise CheckpointError(f"{name} needs ModelScope's client; run 'pip install modelscope'") from None
    folder = snapshot_download(
        name.removeprefix("modelscope:"), revision=revision or "master", allow_patterns=list(PATTERNS)
    )
    return Checkpoint(Path(folder), name, revision or "master")


@dataclass(frozen=True)
class Checkpoint:
    """A folder on disk with the name and revision it came under (for image metadata)."""

    folder: Path
    name: str
    revision: str | None = None

    def check(self) -> None:
        """Fail now if a component's folder, configuration or weight file is missing, truncated or a pickle."""
        for component in COMPONENTS:
            _ = Weights(self.folder / component).headers
            read_json(self.folder / component / "config.json")

    def component(self, name: str) -> Path:
        return self.folder / name
