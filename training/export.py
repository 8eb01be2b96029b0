"""Training states -> the checkpoint folder, and the benchmark of words that training never saw."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..pipeline.evaluation.edits import EditCase, write_edits
from . import bundle, data, drawing, edits
from .common import read_component, read_meta, read_state

STAGES = ("vae", "vision", "planner", "decoder")
DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"
FILES = {
    "vae": DIFFUSERS_FILE,
    "transformer": DIFFUSERS_FILE,
    "text_encoder": TRANSFORMERS_FILE,
    "vision_language_encoder": TRANSFORMERS_FILE,
}
TOKENIZER = ("model.visual", "model.vqmodel")  # the vision stage trains it, the planner only holds it
# regions -> prompts, tokens of their pictures: 192x96 px, and 192x128 where four lines need the room
PICTURES = {1: (200, (3, 6)), 2: (60, (3, 6)), 3: (40, (3, 6)), 4: (40, (4, 6))}


def write_checkpoint(runs: Path, out: Path, start: Path | None = None) -> None:
    """Write the frame and the moving averages of all four stages; those not trained are as in checkpoint `start`."""
    trained = {stage: _average(runs / stage) for stage in STAGES if read_meta(runs / stage)}
    missing = [stage for stage in STAGES if stage not in trained]
    if missing and start is None:
        raise FileNotFoundError(
            f"{runs} has no training state of {', '.join(missing)}; train these stages, or take them with --start"
        )
    weights = _components(start) if start else {}
    weights = {name: weights.get(name, {}) | part for name, part in _trained_components(trained).items()}
    bundle.write_frame(out)
    for component, tensors in weights.items():
        bundle.write_weights(out / component, tensors, FILES[component])


def _components(checkpoint: Path) -> dict[str, dict]:
    return {component: read_component(checkpoint, component) for component in FILES}


def _trained_components(trained: dict[str, dict]) -> dict[str, dict]:
    """Moving averages by stage -> tensors by component, those that the stages have."""
    decoder, planner = trained.get("decoder", {}), _below(trained.get("planner", {}), "planner.")
    language = {name: tensor for name, tensor in planner.items() if not name.startswith(TOKENIZER)}
    tokenizer = {name: tensor for name, tensor in trained.get("vision", {}).items() if name.startswith(TOKENIZER)}
    return {
        "vae": trained.get("vae", {}),
        "transformer": _below(decoder, "dit."),
        "text_encoder": _below(decoder, "glyph."),
        "vision_language_encoder": {**language, **tokenizer},
    }


def _average(folder: Path) -> dict:
    return _below(read_state(folder), "ema.")


def _below(tensors: dict, prefix: str) -> dict:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_benchmark(out: Path) -> None:
    """Write `N.json` for N regions in CVTG-2K's layout, each prompt with its size, and the edits into `edit/`."""
    out.mkdir(parents=True, exist_ok=True)
    for regions, scenes in benchmark_scenes():
        entries = [_entry(i, scene) for i, scene in enumerate(scenes)]
        (out / f"{regions}.json").write_text(json.dumps({"data_list": entries}, indent=1) + "\n", encoding="utf-8")
    write_edits(out / "edit", edit_cases())


def edit_cases(per_kind: int = 40, seed: int = 2000) -> list[EditCase]:
    """Edits of pictures with words that training never drew, 192x96 px."""
    rng = random.Random(seed)
    drawn = [(kind, edits.draw_edit(rng, 3, 6, kind, data.held_word)) for kind in edits.KINDS for _ in range(per_kind)]
    return [_edit_case(i, kind, edit) for i, (kind, edit) in enumerate(drawn)]


def _edit_case(index: int, kind: str, edit: edits.Edit) -> EditCase:
    references = tuple(_image(picture) for picture in edit.references)
    name = f"{kind}_{index}"
    return EditCase(name, kind, edit.prompt, edit.texts, references, _image(edit.target), edit.changed)


def _image(picture: data.Picture) -> Image.Image:
    return Image.fromarray(drawing.render(picture.codes[None], picture.chars[None])[0])


def benchmark_scenes() -> Iterator[tuple[int, list[data.Scene]]]:
    """(regions, scenes) of words that training never drew."""
    for regions, (count, grid) in PICTURES.items():
        yield regions, data.held_scenes(count, *grid, regions, seed=1000 + regions)


def _entry(index: int, scene: data.Scene) -> dict:
    h, w = scene.codes.shape
    size = {"height": h * data.TOKEN, "width": w * data.TOKEN}
    return {"index": index, "prompt": scene.prompt, "carrier_list": [], "sentence_list": scene.texts, **size}


def write_truth(out: Path) -> None:
    """Draw the benchmark's scenes, named as `glm-image eval` names its pictures: the ceiling of any score."""
    out.mkdir(parents=True, exist_ok=True)
    for regions, scenes in benchmark_scenes():
        for i, scene in enumerate(scenes):
            _image(scene.picture).save(out / f"{regions}_{i}.png")
    for case in edit_cases():
        case.asked.save(out / f"{case.name}.png")
