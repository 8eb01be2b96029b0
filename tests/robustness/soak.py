"""A long run of a real ComfyUI server: `python tests/robustness/soak.py --jobs 500 --kills 20 --seed 1`.

First two clients queue jobs on one server, and interrupt some of them at random: its memory must not grow, and images
of fixed seeds must not change. Then servers are killed (SIGKILL) while they save a plan or load a LoRA, and started
again over the same files: each must open, none may be left over, and images must be those of the first server.
Linux; `python tools/comfyui.py setup` comes first. Prints a table; the last line is JSON.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

if "comfyui_glm_image" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - loads this tree as the package

import torch
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.events import Events
from comfyui_glm_image.tests.comfyui.graphs import change, node, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError, Server
from comfyui_glm_image.tools import comfyui
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

SMALL = Path(__file__).resolve().parents[2] / "checkpoints" / "small"
SIZES = ((96, 64), (128, 64), (64, 96))
FIXED = 4  # jobs whose images are compared
LORA, RANK = "soak.safetensors", 64
FIRST = 50  # jobs before memory is compared: what is imported and cached late has come by then
WINDOW = 20  # jobs over which a figure of memory is the median
GROWTH = 0.01
WRONG = (
    "failed", "memory grew by more than 1 %", "broken files", "temporaries left", "temporaries offered", "tracebacks",
    "changed images",
)  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(install: comfyui.Install, base: Path) -> Server:
    os.environ.update(ONE_THREAD)
    return Server(install, base)


def write_lora(folder: Path) -> None:
    """A LoRA for every linear layer of the small checkpoint's decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, state = torch.Generator().manual_seed(1), {}
    for path in (SMALL / "transformer").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - a file of safetensors is no mapping
                shape = file.get_slice(key).get_shape()
                if key.startswith("transformer_blocks.") and len(shape) == 2:
                    name = "transformer." + key.removesuffix(".weight")
                    state[f"{name}.lora_A.weight"] = 0.02 * torch.randn(RANK, shape[1], generator=generator)
                    state[f"{name}.lora_B.weight"] = 0.02 * torch.randn(shape[0], RANK, generator=generator)
    save_file(state, folder / LORA)


def job(seed: int, name: str, width: int = 96, height: int = 64, lora: bool = False) -> dict:
    """A graph that saves its image and its plan under `name`."""
    graph = text_to_image("small (bundled)", width, height, plan_seed=seed, sample_seed=seed, sample_steps=2)
    graph = change(graph, save_filename_prefix=f"images/{name}")
    graph["plans"] = node("GLMImageSavePlan", plan=["plan", 0], filename_prefix=f"plans/{name}")
    if lora:
        graph["lora"] = node("GLMImageLoRA", model=["load", 1], lora=LORA, strength=0.5)
        graph = change(graph, sample_model=["lora", 0])
    return graph


def fixed(number: int) -> dict:
    width, height = SIZES[number % len(SIZES)]
    return job(number, f"fixed{number}", width, height, lora=number % 2 == 1)


class Images:
    """Digests of pixels by fixed job; `changed` counts images that differ from the first of their job."""

    def __init__(self):
        self.first: dict[int, str] = {}
        self.compared = self.changed = 0

    def add(self, number: int, file: Path) -> None:
        with Image.open(file) as image:
            digest = hashlib.sha256(image.tobytes()).hexdigest()
        self.compared += 1
        self.changed += self.first.setdefault(number, digest) != digest


class Client(threading.Thread):
    """One page: queues jobs, watches them over its websocket, and interrupts some."""

    def __init__(self, soak: "Soak", name: str, seed: str):
        super().__init__(name=name)
        self.soak, self.draw = soak, random.Random(seed)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while self.soak.take():
                self.one()
        except BaseException as error:  # told by the main thread
            self.error = error

    def one(self) -> None:
        server, number = self.soak.server, self.draw.randrange(FIXED)
        is_fixed = self.draw.random() < 0.4
        graph = fixed(number) if is_fixed else self.other()
        with Events(server.url, self.name) as events:
            prompt = server.queue(graph, self.name)
            if self.draw.random() < 0.4:
                time.sleep(self.draw.uniform(0, 2 * self.soak.seconds))
                server.post("/interrupt", {})
            events.until_done(prompt)
        try:
            outputs = server.wait(prompt)
        except PromptError as error:
            end = "interrupted" if error.text == "interrupted" else f"failed: {error}"
        else:
            end = "done"
            if is_fixed:
                self.soak.images.add(number, server.files(outputs, "save")[0])
        server.post("/history", {"delete": [prompt]})  # ComfyUI keeps every job's graph, some 17 KB, until it is told
        self.soak.count(end)

    def other(self) -> dict:
        width, height = self.draw.choice(SIZES)
        return job(self.draw.randrange(100, 1 << 32), "other", width, height, lora=self.draw.random() < 0.5)


class Soak:
    """One server's life under two clients, and its memory after each job."""

    def __init__(self, server: Server, jobs: int, images: Images):
        self.server, self.left, self.images = server, jobs, images
        self.lock, self.ends, self.memory = threading.Lock(), Counter(), []
        begin = time.monotonic()
        server.run(job(99, "first"))
        self.seconds = time.monotonic() - begin  # at most what a job takes

    def take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def count(self, end: str) -> None:
        with self.lock:
            self.ends[end] += 1
            self.memory.append(memory_of(self.server.process.pid))
            done = len(self.memory)
            if done % FIRST == 0:
                print(f"| {done} | {self.held(done):.1f} | {self.memory[-1][1]:.1f} |", flush=True)

    def run(self, seed: int) -> None:
        clients = [Client(self, name, f"{seed} {name}") for name in ("one", "other")]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for client in clients:
            if client.error:
                raise client.error

    def held(self, number: int) -> float:
        """MB of anonymous memory, over the last jobs up to its `number`-th."""
        return statistics.median(anonymous for anonymous, _ in self.memory[max(number - WINDOW, 0) : number])

    @property
    def growth(self) -> float:
        """From the first figure to the last, as a share."""
        return self.held(len(self.memory)) / self.held(FIRST) - 1 if len(self.memory) > FIRST else 0.0


def memory_of(pid: int) -> tuple[float, float]:
    """(anonymous, resident) MB of a process. Pages of files are its own or shared as other processes come and go."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return kib["Anonymous"] / 1024, kib["Rss"] / 1024


def partials(base: Path) -> list[Path]:
    return list(base.rglob("*.partial"))


def kill_in_save(server: Server, draw: random.Random) -> None:
    """Kill the server once the temporary file of a plan is seen: most often while it is written."""
    graph = job(draw.randrange(1 << 32), "killed")
    graph["reference"] = node("EmptyImage", width=512, height=512, batch_size=8, color=draw.randrange(1 << 24))
    graph = change(graph, plan_reference_1=["reference", 0])
    saves = {f"plans{i}": node("GLMImageSavePlan", plan=["plan", 0], filename_prefix="plans/killed") for i in range(9)}
    kept = {name: graph[name] for name in ("load", "plan", "reference")}
    with Events(server.url, "killer") as events:
        server.queue({name: entry for name, entry in (kept | saves).items()}, "killer")
        until_running(events, "plans", server)
        folder, wanted = server.base / "output" / "plans", draw.randrange(3)
        before = {path.name for path in partials(folder)} if folder.exists() else set()
        end, seen = time.monotonic() + 5, set()
        while len(seen) <= wanted and time.monotonic() < end:
            seen |= {name for name in os.listdir(folder) if name.endswith(".partial")} - before
        kill(server)


def kill_in_lora(server: Server, draw: random.Random) -> None:
    """Kill the server while it reads a LoRA or puts it into the weights."""
    with Events(server.url, "killer") as events:
        graph = job(draw.randrange(1 << 32), "killed", lora=True)
        server.queue(change(graph, lora_strength=draw.uniform(0.1, 1.0)), "killer")  # not what ComfyUI has cached
        until_running(events, "lora", server)
        time.sleep(draw.uniform(0, 0.15))
        kill(server)


def until_running(events: Events, name: str, server: Server) -> None:
    for kind, data in events:
        if kind == "executing" and (data["node"] or "").startswith(name):
            return
        if kind == "execution_error":
            raise PromptError(data["exception_message"], data["node_id"])


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait()


def kill_phase(install, base: Path, kills: int, draw: random.Random, images: Images, found: Counter) -> None:
    """Start, draw a fixed image, kill; again and again over the same files."""
    for number in range(kills):
        server = start(install, base)
        look(server, number % FIXED, images, found)
        (kill_in_save, kill_in_lora)[number % 2](server, draw)
        left = len(partials(base))
        found["kills in saves" if number % 2 == 0 else "kills in LoRA loads"] += 1
        found["kills that left a temporary file"] += number % 2 == 0 and left > 0
        found["broken files"] += len(broken_files(base))
        print(f"kill {number + 1}: {dict(found)}", flush=True)
    server = start(install, base)
    look(server, 0, images, found)
    server.stop()


def look(server: Server, number: int, images: Images, found: Counter) -> None:
    """One image of a fixed seed; no temporary file is offered before it, and none is left after its plan is saved."""
    found["temporaries offered"] += sum(".partial" in name for name in server.options("GLMImageLoadPlan", "plan"))
    images.add(number, server.files(server.run(fixed(number)), "save")[0])
    found["temporaries left"] += len(partials(server.base))
    found["tracebacks"] += server.log.count("Traceback")


def broken_files(base: Path) -> list[str]:
    """Outputs that do not open, with what was said."""
    broken = []
    for path in (base / "output").rglob("*"):
        try:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".safetensors":
                Plan.load(path)
        except Exception as error:  # whatever a reader says
            broken.append(f"{path.name}: {error}")
    return broken


def memory_phase(install, base: Path, jobs: int, seed: int, images: Images, found: Counter) -> None:
    print("| jobs done | anonymous memory, MB | resident memory, MB |\n| ---: | ---: | ---: |")
    server = start(install, base)
    try:
        soak = Soak(server, jobs, images)
        soak.run(seed)
        found["tracebacks"] += server.log.count("Traceback")
    finally:
        server.stop()
    found.update(soak.ends)
    found["failed"] += sum(count for end, count in soak.ends.items() if end.startswith("failed"))
    found["memory grew by more than 1 %"] += soak.growth > GROWTH
    print(f"memory from job {FIRST} to {jobs}: {100 * soak.growth:+.2f} %", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500, help="0 leaves the first part out")
    parser.add_argument("--kills", type=int, default=20, help="0 leaves the second part out")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    images, install, found = Images(), comfyui.install(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_lora(base / "models" / "loras")
        if args.jobs:
            memory_phase(install, base, args.jobs, args.seed, images, found)
        if args.kills:
            kill_phase(install, base, args.kills, random.Random(args.seed), images, found)
        found["broken files"] += len(broken_files(base))
        found["temporaries left"] += len(partials(base))
        found["files"] = sum(path.is_file() for path in (base / "output").rglob("*"))
    found["images of fixed seeds"], found["changed images"] = images.compared, images.changed
    print(json.dumps(found))
    return 1 if any(found[name] for name in WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
