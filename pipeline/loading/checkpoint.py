"""A checkpoint's folder in the hub's layout: found or downloaded, and checked before anything is read."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ..errors import CheckpointError
from ..geometry import TrainedSizes
from ..models.config import read_json
from ..text import shown
from . import HUB_ID
from .single_files import weights_at
from .weights import Weights, read_header

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints" / "small"  # comes with the package
# Height, width in pixels, the usual one first.
BUNDLED_SIZES = ((96, 192), (128, 192), (64, 192), (64, 128), (32, 128), (256, 256), (256, 192))
PLANNER, GLYPH, DECODER, VAE = COMPONENTS = ("vision_language_encoder", "text_encoder", "transformer", "vae")
MODEL_FOLDERS = {PLANNER: "text_encoders", DECODER: "diffusion_models"}  # in ComfyUI, of single files
COMPONENT_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
PATTERNS = (  # what is read, here and by the reference libraries; no code, no weights of another format
    "model_index.json",
    "scheduler/scheduler_config.json",
    "processor/*.json",
    "processor/*.jinja",
    "tokenizer/*.json",
    *(f"{name}/{file}" for name in COMPONENTS for file in COMPONENT_FILES),
)


NO_FILES: Mapping[str, Path] = MappingProxyType({})
SETTINGS = ("vision_language_encoder/*.json", "processor/*.json", "processor/*.jinja")  # what a prompt's tokens take


def title(component: str) -> str:
    """The component's name for people."""
    return {PLANNER: "planner", GLYPH: "glyph encoder", DECODER: "decoder", VAE: "VAE"}[component]


def resolve(
    path_or_id: str | os.PathLike,
    revision: str | None = None,
    local_only: bool = False,
    patterns: Sequence[str] = PATTERNS,
    files: Mapping[str, Path] = NO_FILES,
) -> "Checkpoint":
    """A folder, a hub id (`owner/name`, optional `revision`) or `modelscope:owner/name` -> a checkpoint on disk.

    "small" is the bundled one. Downloads resume, show progress and fetch only the files of `patterns`, which are those
    that the pipeline reads. A folder wins over an id of the same spelling. `files` are single files that replace the
    weights of components, which are not downloaded then.
    """
    for path in files.values():
        _ = weights_at(path).headers
    if files:
        patterns = [name for name in patterns if name.split("/")[0] not in files or "safetensors" not in name]
        return replace(resolve(path_or_id, revision, local_only, patterns), files=files)
    name = os.fspath(path_or_id)
    path = named_folder(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise CheckpointError(f"{shown(name)} is no name of a folder: {error}") from None
    if is_folder:
        return Checkpoint(path, name, revision)
    if is_file:
        raise CheckpointError(f"{path} is a file; give the checkpoint's folder, the one that holds model_index.json")
    if name.startswith("modelscope:"):
        return _from_modelscope(name, revision, patterns)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{shown(name)} does not exist; give a folder or a hub id such as {HUB_ID}")
    return _from_hub(name, revision, local_only, patterns)


def weight_files(planner: str | os.PathLike | None, decoder: str | os.PathLike | None) -> dict[str, Path]:
    """The `files` of a checkpoint whose planner or decoder has its weights in one file."""
    return {
        name: Path(path).expanduser() for name, path in ((PLANNER, planner), (DECODER, decoder)) if path is not None
    }


def named_folder(name: str) -> Path:
    """Where a checkpoint of this name would be on disk; "small" is the bundled one."""
    return BUNDLED if name == "small" else Path(name).expanduser()


def _from_hub(
    name: str, revision: str | None, local_only: bool, patterns: Sequence[str], force: bool = False
) -> "Checkpoint":
    """`force`: fetch these files again, whatever is here."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=local_only,
            **({"force_download": True} if force else {}),
        )
    except Exception as error:  # by version: of the hub's client, of requests, of httpx, of the file system
        raise CheckpointError(_why_not(name, error)) from None
    return Checkpoint(Path(folder), name, Path(folder).name)


def _why_not(name: str, error: Exception) -> str:
    """What the hub's client says by its kinds of error, as one sentence with what to do."""
    kind, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
    if kind == "HFValidationError":
        return f"{shown(name)} is no hub id; write owner/name, such as {HUB_ID}, or give a folder"
    if kind in ("RepositoryNotFoundError", "GatedRepoError") or status in (401, 403, 404):
        return f"the hub has no model {name} for you (HTTP {status or 404}); check the spelling, or log in to the hub"
    if kind == "RevisionNotFoundError":
        return f"the hub's model {name} has no such revision; leave it out, or give a branch, tag or commit"
    if status == 429:
        return f"the hub answers that it is asked too often (HTTP 429); wait some minutes, then download {name} again"
    if status is not None:
        return f"the hub failed with HTTP {status} while {name} was downloaded; try later, what is here is kept"
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return f"{name} is not on this machine and the hub cannot be reached; run 'glm-image download' when it can"
    return f"downloading {name} was cut off ({kind}: {error}); what is here is kept, download it again"


def download(name: str, revision: str | None = None) -> "Checkpoint":
    """A checkpoint from the hub, whole: a weight file that is cut or changed is fetched once more."""
    checkpoint = resolve(name, revision)
    broken = [path for path in checkpoint.weight_files() if not is_whole(path)]
    if broken and checkpoint.folder != named_folder(name) and not name.startswith("modelscope:"):
        patterns = [path.relative_to(checkpoint.folder).as_posix() for path in broken]
        checkpoint = _from_hub(name, revision, False, patterns, force=True)
    checkpoint.check()
    return checkpoint


def is_whole(path: Path) -> bool:
    """Whether a weight file has the size that its header asks for and, in the hub's cache, the hash it is stored by.

    The cache names large files by their SHA-256; a link to one tells it without asking the hub.
    """
    try:
        read_header(path)
    except CheckpointError:
        return False
    blob = path.resolve().name
    if not path.is_symlink() or not re.fullmatch("[0-9a-f]{64}", blob):
        return True
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest() == blob


def _from_modelscope(name: str, revision: str | None, patterns: Sequence[str]) -> "Checkpoint":
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise CheckpointError(f"{name} needs ModelScope's client; run 'pip install modelscope'") from None
    try:
        folder = snapshot_download(
            name.removeprefix("modelscope:"), revision=revision or "master", allow_patterns=list(patterns)
        )
    except Exception as error:  # its client raises many kinds
        raise CheckpointError(f"downloading {name} failed ({type(error).__name__}: {error}); try again") from None
    return Checkpoint(Path(folder), name, revision or "master")


@dataclass(frozen=True)
class Checkpoint:
    """A folder on disk with the name and revision it came under (for image metadata), and single files that replace the
    weights of components in it.
    """

    folder: Path
    name: str
    revision: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict, hash=False)

    def check(self) -> None:
        """Fail now if a component's folder, configuration or weight file is missing, truncated or a pickle."""
        for component in COMPONENTS:
            _ = self.weights(component).headers
            read_json(self.folder / component / "config.json")

    def weight_files(self) -> list[Path]:
        """Every safetensors file of the components."""
        return [path for name in COMPONENTS for path in sorted((self.folder / name).glob("*.safetensors"))]

    @property
    def trained_sizes(self) -> TrainedSizes:
        """The bundled checkpoint's own; the release's for all others, which have its architecture."""
        return TrainedSizes(listed=BUNDLED_SIZES) if self.folder.resolve() == BUNDLED else TrainedSizes()

    def component(self, name: str) -> Path:
        return self.folder / name

    def weights(self, name: str) -> Weights:
        return weights_at(self.files[name]) if name in self.files else Weights(self.component(name))
