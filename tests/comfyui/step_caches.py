"""Caches that skip steps, against the exact run: steps computed, time and PSNR. Prints the table of docs/comfyui.md.

python tests/comfyui/step_caches.py
"""

import re
import tempfile
import time
from pathlib import Path

import numpy as np
from comfyui_glm_image.pipeline.glm_image import GlmImage, to_pil
from comfyui_glm_image.tests.comfyui import graphs
from comfyui_glm_image.tests.comfyui.graphs import change, node
from comfyui_glm_image.tests.comfyui.server import Server
from comfyui_glm_image.tools import comfyui
from PIL import Image

STEPS, WIDTH, HEIGHT = 30, 192, 96
PROMPT = 'a red sign that says "OPEN" in white'
THRESHOLDS = {"EasyCache": (0.1, 0.2, 0.5, 1.0), "LazyCache": (0.1, 0.2, 0.5, 1.0)}
OURS = (0.05, 0.1, 0.2)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = ((found.astype(float) - wanted.astype(float)) ** 2).mean()
    return float("inf") if not error else 10 * np.log10(255**2 / error)


def row(name: str, skipped: str, seconds: float, exact: float, found: np.ndarray, wanted: np.ndarray) -> str:
    return f"| {name} | {skipped} | {seconds / exact:.2f} | {psnr(found, wanted):.1f} dB |"


def in_comfyui(server: Server) -> list[str]:
    graph = graphs.text_to_image("small (bundled)", WIDTH, HEIGHT, plan_prompt=PROMPT, text_glyph_mode="prompt_order")
    graph = change(graph, sample_steps=STEPS)

    def run(graph: dict) -> tuple[np.ndarray, float, str]:
        start, began = len(server.log), time.monotonic()
        (file,) = server.files(server.run(graph), "save")
        return np.asarray(Image.open(file)), time.monotonic() - began, server.log[start:]

    run(change(graph, sample_seed=99))  # loads and plans
    wanted, exact, _ = run(graph)
    rows = ["| cache | steps skipped | time | PSNR |", "|---|---|---|---|", "| none | 0 | 1.00 | exact |"]
    for kind, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            more = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
            cache = {"cache": node(kind, model=["load", 1], reuse_threshold=threshold, **more)}
            found, seconds, log = run(change(graph | cache, sample_model=["cache", 0]))
            skipped = re.search(r"skipped (\d+/\d+) steps", log)[1]
            rows.append(row(f"{kind}, reuse_threshold {threshold}", skipped, seconds, exact, found, wanted))
    return rows


def of_the_pipeline() -> list[str]:
    """`step_cache` of the library and command line: a first-block cache of each pass of guidance."""
    model = GlmImage.from_pretrained("small", device="cpu")
    plan = model.plan(PROMPT, HEIGHT, WIDTH, seed=3)
    step, computed = type(model.transformer)._later_blocks, []

    def counted(self, *arguments):
        computed.append(1)
        return step(self, *arguments)

    type(model.transformer)._later_blocks = counted

    def run(**settings) -> tuple[np.ndarray, float, int]:
        computed.clear()
        began = time.monotonic()
        latents = model.denoise(
            plan, STEPS, 1.5, 5, guidance_batching="sequential", glyph_mode="prompt_order", **settings
        )
        seconds = time.monotonic() - began
        return np.asarray(to_pil(model.decode(latents))[0]), seconds, len(computed)

    run()
    wanted, exact, whole = run()
    rows = []
    for threshold in OURS:
        found, seconds, passes = run(step_cache=threshold)
        skipped = f"{whole - passes}/{whole} passes"
        rows.append(row(f"step_cache {threshold} (library and CLI)", skipped, seconds, exact, found, wanted))
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(comfyui.install(), Path(folder))
        try:
            rows = in_comfyui(server)
        finally:
            server.stop()
    print("\n".join(rows + of_the_pipeline()))


if __name__ == "__main__":
    main()
