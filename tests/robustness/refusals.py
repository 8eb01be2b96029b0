"""How long a refusal takes, here and in an older checkout: `python tests/robustness/refusals.py --before ../older`.

Only names that both builds have are used. Each refusal is asked for in a process of its own, whose model is open; what
is told is processor time, which other work on the machine does not change.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
LIMIT = 360  # seconds of the clock after which a refusal counts as none
BAD = {
    "guidance interval upside down": {"guidance_interval": (0.9, 0.1)},
    "unknown glyph mode": {"glyph_mode": "best"},
    "guidance scale 0.5": {"guidance_scale": 0.5},
    "a string as glyph texts": {"glyph_texts": "STOP"},
    "steps 0": {"steps": 0},
    "unknown option": {"guidance": 2},
    "batched guidance with a step cache": {"guidance_batching": "batched", "step_cache": 0.1},
    "seed 1.5": {"seed": 1.5},
    "20 texts of 2,048 bytes": {"glyph_texts": ["x" * 2048] * 20},
    "a prompt of 1 MB": {"prompt": "word " * 200_000},
    "20,000 open quotes and no size": {"prompt": "“" * 20_000, "glyph_mode": "prompt_order", "height": 97},
    "size 97x192": {"height": 97},
    "no prompt": {"prompt": ""},
}
NAMES = [*BAD, "plan file of 1 GB", "3,000 layers in the settings"]


def damaged_checkpoint(folder: Path) -> Path:
    """The small checkpoint, whose decoder's settings ask for 3,000 layers."""
    copy = folder / "layers"
    copy.mkdir()
    for path in (HERE / "checkpoints" / "small").iterdir():
        if path.name != "transformer":
            (copy / path.name).symlink_to(path)
    (copy / "transformer").mkdir()
    for path in (HERE / "checkpoints" / "small" / "transformer").iterdir():
        if path.name != "config.json":
            (copy / "transformer" / path.name).symlink_to(path)
    settings = json.loads((HERE / "checkpoints" / "small" / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps(settings | {"num_layers": 3000}))
    return copy


def cases(model, folder: Path) -> dict:
    """Name -> what is refused."""
    from comfyui_glm_image.pipeline import GlmImage, Plan

    size = {"prompt": "a sign 'STOP'", "height": 96, "width": 192, "steps": 2}
    broken = folder / "broken.safetensors"
    with broken.open("wb") as file:
        file.truncate(1 << 30)
    found = {name: lambda more=more: model.generate(**{**size, **more}) for name, more in BAD.items()}
    found["plan file of 1 GB"] = lambda: Plan.load(broken)
    found["3,000 layers in the settings"] = lambda: (
        GlmImage.from_pretrained(folder / "layers", device="cpu").transformer
    )
    return found


def measure(name: str) -> dict:
    """Ask for one refusal -> seconds and message."""
    sys.path.insert(0, str(HERE / "tests"))
    import conftest  # noqa: F401
    import torch
    from comfyui_glm_image.pipeline import GlmImage

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        damaged_checkpoint(folder)
        model = GlmImage.from_pretrained(HERE / "checkpoints" / "small", device="cpu")
        case, start = cases(model, folder)[name], time.process_time()
        try:
            case()
            message = "not refused"
        except Exception as error:  # the older build has others
            message = f"{type(error).__name__}: {str(error)[:80]}"
        return {"seconds": time.process_time() - start, "message": message}


def ask(tree: Path, name: str) -> dict:
    script = tree / "tests" / "robustness" / "refusals.py" if tree == HERE else Path(__file__)
    python = tree / ".venv" / "bin" / "python"
    command = [str(python if python.exists() else sys.executable), str(script), "--one", name, "--tree", str(tree)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError):
        return {"seconds": float("inf"), "message": f"no end in {LIMIT} s"}


def main() -> None:
    global HERE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="an older checkout, with a .venv or the same packages")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        HERE = args.tree.resolve()
        print(json.dumps(measure(args.one)))
        return
    trees = [HERE, *([args.before.resolve()] if args.before else [])]
    print("| refusal | now, s | before, s |\n| --- | ---: | ---: |")
    for name in NAMES:
        times = [ask(tree, name) for tree in trees]
        print(f"| {name} | " + " | ".join(f"{t['seconds']:.3f}" for t in times) + " |", *(t["message"] for t in times))


if __name__ == "__main__":
    main()
