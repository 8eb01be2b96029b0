"""Command lines with bad values: as `surfaces`, which lists them."""

import contextlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.tests.robustness import values
from PIL import Image

OPTIONS = (
    "--width", "--height", "--steps", "--cfg", "--seed", "--count", "--temperature", "--top-p", "--dtype",
    "--device", "--image", "--plan", "--text", "--offload", "-o", "--model", "--revision", "--step-cache",
    "--layout", "--server", "--aspect", "--plan-rows", "--planner-weights", "--guidance-interval", "--planner-lora",
)  # fmt: skip
PLANNING = (
    "--width", "--height", "--seed", "--count", "--temperature", "--top-p", "--image", "--layout", "--aspect",
    "--parallel", "--timeout", "--plan-rows", "--planner-weights", "--planner-lora",
)  # fmt: skip
TRAINING = (
    "--rank", "--alpha", "--targets", "--steps", "--batch", "--lr", "--schedule", "--warmup", "--drop", "--pixels",
    "--seed", "--sample", "--threads", "--dtype", "--device",
)  # fmt: skip
NOTICES = ("the server decides", "the layout reaches the server", "was never trained")
NOWHERE = "http://127.0.0.1:9"  # a port that nothing listens to


def command_lines(folder: Path) -> Callable:
    """`generate` and `plan` of checkpoints that are not there."""

    def words(draw: random.Random) -> list[str]:
        command = [draw.choice(("generate", "plan")), values.string(draw), "--model", values.string(draw) or "none"]
        return command + chosen(draw, OPTIONS)

    return maker(folder, words)


def other_commands(folder: Path) -> Callable:
    """`quantize`, `compare`, `plan --server` and `train-lora`, up to where work would begin."""
    folder.mkdir()
    (folder / "data").mkdir()
    Image.new("RGB", (64, 64)).save(folder / "data" / "a.png")

    def words(draw: random.Random) -> list[str]:
        name, model = draw.choice(("quantize", "compare", "plan", "train-lora")), values.string(draw) or "none"
        if name == "quantize":
            forms = ("w8", "w4", "bf16", "w2", "")
            output = draw.choice(("out", "data", "data/a.png", "/dev/null", "/proc/x", "", "x" * 300))
            return [name, model, "-o", output, "--planner", draw.choice(forms), "--decoder", draw.choice(forms)]
        if name == "compare":
            return [name, values.string(draw), "--model", model, *chosen(draw, OPTIONS[:5])]
        if name == "plan":
            return [name, values.string(draw), "--model", "small", "--server", NOWHERE, *chosen(draw, PLANNING)]
        data = draw.choice(("data", "data/a.png", "nowhere", "/", "", "x" * 300))
        return [
            name,
            draw.choice(("planner", "decoder", "vae")),
            data,
            "-o",
            "run",
            "--model",
            model,
            *chosen(draw, TRAINING),
        ]

    return maker(folder, words)


def chosen(draw: random.Random, options: tuple[str, ...]) -> list[str]:
    """One to three options with a value each."""
    picked = draw.sample(options, draw.randint(1, 3))
    return [word for option in picked for word in (option, str(draw.choice((values.string, values.number))(draw)))]


def maker(folder: Path, words: Callable[[random.Random], list[str]]) -> Callable:
    folder.mkdir(exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"

    def make(draw: random.Random) -> Callable:
        line = [word for word in words(draw) if "\0" not in word]
        return lambda: call(folder, line)

    return make


def call(folder: Path, words: list[str]) -> None:
    """Run a command in `folder`; its one line on standard error is raised as an error."""
    shown, told = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            code = main(words)
    except SystemExit as end:  # argparse: the usage and one sentence
        code = end.code
    finally:
        os.chdir(before)
    text = told.getvalue()
    assert code in (0, 1, 2) and "Traceback" not in text, text[-300:]
    if code == 2:
        assert len(text.splitlines()[-1]) < 320, text[-400:]  # the command's name comes before the sentence
        raise InputError(text.splitlines()[-1])
    if code == 1:
        *notices, last = text.splitlines()
        assert last.startswith("glm-image: ") and len(last) < 300, text[:400]
        assert all(any(part in notice for part in NOTICES) for notice in notices), text[:400]
        raise InputError(last.removeprefix("glm-image: "))
