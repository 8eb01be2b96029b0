"""Prints how many kernels one token of the planner launches: plain kernels, fused kernels, captured graph.

A planner of the release's 40 layers and 32 heads, narrow, in bfloat16; launches do not depend on widths.
Usage: python tests/npu/run.py --python tests/npu/launches.py
"""

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "fake_cann" / "python")]

import conftest  # noqa: E402, F401 - makes the package importable
import fake_cann  # noqa: E402
from comfyui_glm_image.pipeline.devices import kernels  # noqa: E402
from comfyui_glm_image.pipeline.devices.device import resolve_device  # noqa: E402
from comfyui_glm_image.pipeline.diagnostics.tiny_models import planner_config, prompt_batch  # noqa: E402
from comfyui_glm_image.pipeline.models.config import GenerationConfig  # noqa: E402
from comfyui_glm_image.pipeline.models.planner import Planner  # noqa: E402
from comfyui_glm_image.pipeline.planning.generate import decode  # noqa: E402
from comfyui_glm_image.pipeline.planning.graphs import GraphRunner  # noqa: E402
from comfyui_glm_image.pipeline.planning.prefill import prefill  # noqa: E402
from comfyui_glm_image.pipeline.planning.steps import new_step  # noqa: E402

LAYERS = 40
SAMPLING = GenerationConfig(0.9, 0.75)


def main() -> None:
    device = resolve_device("npu:0")
    fused = kernels.registered_kernels("npu")
    planner = Planner(planner_config(LAYERS)).to(device, torch.bfloat16).requires_grad_(False)
    for name, chosen, fuse in (
        ("plain, q k v apart", {}, False),
        ("plain", {}, True),
        ("fused", fused, True),
    ):
        kernels.register_kernels("npu", **chosen)
        if fuse:
            planner.fuse()
        prefix = prefill(planner, prompt_batch(), device)
        step = new_step(planner, prefix, SAMPLING, 1, rows=1)
        step.start(prefix)
        with torch.inference_mode(), fake_cann.count() as seen:
            step.eager(1)
        print(f"{name:26} {seen.launches:5} launches a token, {seen.synchronizations} waits")
    graphs = GraphRunner(planner, device)
    decode(planner, prefix, SAMPLING, [0], rows=1, step=step, run=graphs)
    step.start(prefix)
    with torch.inference_mode(), fake_cann.count() as seen:
        graphs(step, 1)
    (size,) = fake_cann.graph_sizes().values()
    print(
        f"{'captured graph':26} {seen.launches + seen.replays:5} launch a token, {seen.synchronizations} waits, "
        f"{seen.host_to_device_copies + seen.device_to_host_copies} copies; {size} kernels inside"
    )


if __name__ == "__main__":
    main()
