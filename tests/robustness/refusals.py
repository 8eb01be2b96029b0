"""How long refusals take, here and in an older checkout: `python tests/robustness/refusals.py --before ../older`.

Only names that both builds have are used. The refusals of a build are asked for in one process, each of a model that is
freshly opened, after a small image that imports everything. What is told is processor time, which other work on the
machine does not change; for a busy server it is time by the clock, which passes with waiting.
"""

import argparse
import contextlib
import http.server
import io
import json
import queue
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
LIMIT = 360  # seconds of the clock after which a refusal counts as none
GOOD = {"prompt": "a sign 'STOP'", "height": 96, "width": 192, "steps": 2}
BAD = {
    "guidance interval upside down": {"guidance_interval": (0.9, 0.1)},
    "unknown glyph mode": {"glyph_mode": "best"},
    "guidance scale 0.5": {"guidance_scale": 0.5},
    "guidance scale NaN": {"guidance_scale": float("nan")},
    "a string as glyph texts": {"glyph_texts": "STOP"},
    "steps 0": {"steps": 0},
    "unknown option": {"guidance": 2},
    "batched guidance with a step cache": {"guidance_batching": "batched", "step_cache": 0.1},
    "step cache -1": {"step_cache": -1.0},
    "seed 1.5": {"seed": 1.5},
    "seed 2^65": {"seed": 2**65},
    "temperature NaN": {"temperature": float("nan")},
    "top_p 2": {"top_p": 2.0},
    "20 texts of 2,048 bytes": {"glyph_texts": ["x" * 2048] * 20},
    "a prompt of 1 MB": {"prompt": "word " * 200_000},
    "60,000 open quotes": {"prompt": "“" * 60_000, "glyph_mode": "prompt_order"},
    "half a character in the prompt": {"prompt": "a sign \ud83d"},
    "size 97x192": {"height": 97},
    "no prompt": {"prompt": ""},
}
SETTINGS = {"3,000 layers in the settings": {"num_layers": 3000}, "0 heads in the settings": {"num_attention_heads": 0}}
CLI = "an output file that cannot be written"
BUSY = "a server that is always busy, 8 s given"
NAMES = [*BAD, *SETTINGS, "plan file of 1 GB", CLI, BUSY]


def damaged_checkpoint(folder: Path, change: dict) -> Path:
    """The small checkpoint, whose decoder's settings are changed."""
    small = HERE / "checkpoints" / "small"
    (folder / "transformer").mkdir(parents=True)
    for path in [*small.iterdir(), *(small / "transformer").iterdir()]:
        if path.name not in ("transformer", "config.json"):
            (folder / path.relative_to(small)).symlink_to(path)
    settings = json.loads((small / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(settings | change))
    return folder


def open_model(folder: Path = HERE / "checkpoints" / "small"):
    from comfyui_glm_image.pipeline import GlmImage

    return GlmImage.from_pretrained(folder, device="cpu")


def load_plan(folder: Path) -> None:
    from comfyui_glm_image.pipeline import Plan

    folder.mkdir()
    broken = folder / "broken.safetensors"
    with broken.open("wb") as file:
        file.truncate(1 << 30)
    Plan.load(broken)


def write_nowhere() -> None:
    """The command line, in this process."""
    said, argv = io.StringIO(), sys.argv
    words = ["generate", GOOD["prompt"], "-o", "/proc/sign.png", "--model", str(HERE / "checkpoints" / "small")]
    sys.argv = ["glm-image", *words, "--height", "96", "--width", "192", "--steps", "2", "--device", "cpu"]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            runpy.run_module("comfyui_glm_image", run_name="__main__", alter_sys=True)
    except SystemExit:
        raise RuntimeError((said.getvalue().strip().splitlines() or ["nothing said"])[-1]) from None
    finally:
        sys.argv = argv


class Busy(http.server.BaseHTTPRequestHandler):
    """A server that is well and always busy for another minute."""

    def do_GET(self) -> None:
        self.answer(200, b'{"data": []}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(429, b'{"error": {"message": "busy"}}')

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Retry-After", "60")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Quiet."""


def ask_busy_server() -> None:
    from comfyui_glm_image.pipeline import remote

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    send = remote.generate if hasattr(remote, "generate") else remote.draw  # its older name
    send(remote.Job("a sign", url, width=96, height=64, engine="vllm-omni", seconds=8.0))


def case(name: str, folder: Path):
    """What is refused."""
    if name in BAD:
        model = open_model()
        return lambda: model.generate(**{**GOOD, **BAD[name]})
    if name in SETTINGS:
        checkpoint = damaged_checkpoint(folder / name, SETTINGS[name])
        return lambda: open_model(checkpoint).transformer
    return {CLI: write_nowhere, BUSY: ask_busy_server}.get(name, lambda: load_plan(folder))


def measure(names: list[str]) -> None:
    """Ask for each refusal three times and print a line of JSON with the shortest."""
    sys.path.insert(0, str(HERE / "tests"))
    import conftest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    open_model().generate(**GOOD)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            clock = time.monotonic if name == BUSY else time.process_time
            tries = [once(case(name, Path(folder, str(i))), clock) for i in range(1 if name == BUSY else 3)]
            seconds, message = min(tries)
            print(json.dumps({"seconds": seconds, "message": message}), flush=True)


def once(refused, clock) -> tuple[float, str]:
    """One refusal -> seconds and what was said."""
    start, message = clock(), "not refused"
    try:
        refused()
    except Exception as error:  # the older build has others
        message = f"{type(error).__name__}: {str(error)[:80]}"
    return clock() - start, message


def ask(tree: Path, names: list[str]) -> list[dict]:
    """Every refusal of one build; the process is started again after one that had no end."""
    results: list[dict] = []
    python = tree / ".venv" / "bin" / "python"
    while len(results) < len(names):
        left = names[len(results) :]
        command = [
            str(python if python.exists() else sys.executable),
            str(Path(__file__).resolve()),
            "--tree",
            str(tree),
        ]
        with subprocess.Popen([*command, "--ask", json.dumps(left)], stdout=subprocess.PIPE, text=True) as process:
            lines: queue.SimpleQueue = queue.SimpleQueue()
            threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put("")], daemon=True).start()  # noqa: B023
            for _ in left:
                try:
                    line = lines.get(timeout=LIMIT)
                except queue.Empty:
                    line = json.dumps({"seconds": float("inf"), "message": f"no end in {LIMIT} s"})
                    process.kill()
                results.append(json.loads(line or '{"seconds": Infinity, "message": "the process ended"}'))
                if not line or results[-1]["seconds"] == float("inf"):
                    break
    return results


def main() -> None:
    global HERE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="an older checkout, with a .venv or the same packages")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--ask", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        HERE = args.tree.resolve()
        measure(args.ask)
        return
    trees = [HERE, *([args.before.resolve()] if args.before else [])]
    found = [ask(tree, args.only) for tree in trees]
    print("| refusal | now, s | before, s |\n| --- | ---: | ---: |")
    for name, *times in zip(args.only, *found):
        print(f"| {name} | " + " | ".join(f"{t['seconds']:.4f}" for t in times) + " |", *(t["message"] for t in times))


if __name__ == "__main__":
    main()
