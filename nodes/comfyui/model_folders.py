"""Where checkpoints lie: models/glm_image/<name>/ in the hub's layout, and the small one that comes with the pack."""

from pathlib import Path

import folder_paths

from ...pipeline.errors import CheckpointError
from ...pipeline.geometry import TrainedSizes
from ...pipeline.loading import HUB_ID
from ...pipeline.loading.checkpoint import BUNDLED_SIZES

KEY = "glm_image"
BUNDLED = "small (bundled)"
RELEASE = "GLM-Image"
INDEX = "model_index.json"  # names end in it: ComfyUI's dialog of missing models knows files only
FROM_FOLDER = "from the checkpoint"
PACK = Path(__file__).resolve().parents[2]

folder_paths.add_model_folder_path(KEY, str(Path(folder_paths.models_dir) / KEY))
folder_paths.add_model_folder_path("loras", str(PACK / "checkpoints" / "loras"))  # an example for the small checkpoint


def model_names() -> list[str]:
    """What a loader offers: the bundled checkpoint, the release even before it is downloaded, and every other."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(KEY)]
    found = {path.parent.name for root in roots for path in root.glob(f"*/{INDEX}")}
    return [BUNDLED, *(f"{name}/{INDEX}" for name in (RELEASE, *sorted(found - {RELEASE})))]


def usual_sizes() -> dict[str, list[int]]:
    """[width, height] in pixels that each offered checkpoint was trained on, nearest to what it is mostly used at."""
    height, width = BUNDLED_SIZES[0]
    release = TrainedSizes().low
    return {name: [width, height] if name == BUNDLED else [release, release] for name in model_names()}


def find_folder(name: str) -> Path:
    """Where the checkpoint of a name from `model_names` is, or would be."""
    if name == BUNDLED:
        return PACK / "checkpoints" / "small"
    name = name.removesuffix(f"/{INDEX}")
    roots = [Path(root) for root in folder_paths.get_folder_paths(KEY)]
    return next((root / name for root in roots if is_checkpoint(root / name)), roots[0] / name)


def model_folder(name: str) -> Path:
    """`find_folder` of a checkpoint that is there; a missing one is an error that tells how to get it."""
    folder = find_folder(name)
    if is_checkpoint(folder):
        return folder
    if folder.name == RELEASE:
        raise CheckpointError(
            f"the GLM-Image model is not in {folder}; download it (35 GB) with: "
            f'hf download {HUB_ID} --local-dir "{folder}"'
        )
    raise CheckpointError(f"{folder} holds no {INDEX}; put the checkpoint there or choose another model")


def is_checkpoint(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def weight_names(kind: str) -> list[str]:
    """`FROM_FOLDER` and the single files in one of ComfyUI's model folders, which itself lists no GGUF files."""
    files = [name for name in folder_paths.get_filename_list(kind) if name.endswith(".safetensors")]
    return [FROM_FOLDER, *files, *folder_paths.get_filename_list(gguf_kind(kind))]


def gguf_kind(kind: str) -> str:
    """The key of a list of the same folders that holds their GGUF files alone."""
    key = f"{KEY}_{kind}_gguf"
    folder_paths.folder_names_and_paths[key] = (folder_paths.folder_names_and_paths[kind][0], {".gguf"})
    return key


def weight_path(kind: str, name: str, component: Path) -> Path:
    """The component's own folder, or the single file that replaces its weights."""
    if name == FROM_FOLDER:
        return component
    return Path(folder_paths.get_full_path_or_raise(gguf_kind(kind) if name.endswith(".gguf") else kind, name))


def state_of(path: Path) -> str:
    """Changes when the files of a folder (or one file) change: names, sizes and times. Nothing there is a state too."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return repr(stats)
