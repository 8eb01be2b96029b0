"""Running the planner inside ComfyUI: memory, progress, interruption and the image of a plan as it grows.

Shapes: B images, h w full grid, ph pw preview grid, V codebook size.
"""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
import torch
from PIL import Image

from ...pipeline.devices.device import current
from ...pipeline.layout.control import merge_controls
from ...pipeline.models.kv_cache import BUCKET, cache_nbytes
from ...pipeline.plan import Plan
from ...pipeline.planning import image_plan
from ...pipeline.planning import make_plan as pipeline_plan
from ...pipeline.planning.controls import GridControl
from ...pipeline.planning.make_plan import PlanRequest, PreparedPlan
from ...pipeline.planning.preview import PREVIEW_SIDE, draw_tokens
from ...pipeline.planning.rows import WIDEST
from ...pipeline.planning.window_step import noise_nbytes
from .images import to_pil
from .planner import PlannerPart

PLANS = 4  # of a planner that are remembered, some kilobytes each and the pixels of references
PREVIEW_EVERY = 8  # tokens between two images of the plan


def make_plan(
    part: PlannerPart,
    prompt: str,
    height: int,
    width: int,
    *,
    seed: int = 0,
    count: int = 1,
    temperature: float | None = None,
    top_p: float | None = None,
    plan_rows: int | None = None,
    images: Sequence[torch.Tensor] = (),
    controls: dict[str, GridControl] | None = None,
) -> Plan:
    """Plan `count` images, the k-th with seed + k. `images` are references, (H, W, 3) in 0..1 each.

    Loads the planner, shows progress and the plan as it grows at the running node, and stops within a pass when the
    user interrupts.
    """
    pictures = [to_pil(image) for image in images]
    request = PlanRequest(prompt, height, width, pictures, seed, count, temperature, top_p, plan_rows)
    prepared = part.settings.prepare(request)
    _load(part, prepared)
    device = part.patcher.load_device
    with current(device):
        if part.guide:
            controls = merge_controls(controls or {}, part.guide(part, prepared.grids))
        return pipeline_plan.make_plan(
            part.module,
            prepared,
            device,
            part.module.compute_dtype,
            controls=controls,
            progress=Watch(part, prepared.grids, prepared.planned),
            before_pass=comfy.model_management.throw_exception_if_processing_interrupted,
            loras=part.used_loras,
        )


def plan_of_images(part: PlannerPart, images: Sequence[Image.Image], prompt: str) -> Plan:
    """The plan that `fitted` images of one size show; loads the planner."""
    comfy.model_management.load_models_gpu([part.patcher])
    device, dtype = part.patcher.load_device, part.module.compute_dtype
    with current(device):
        return image_plan.plan_of_images(part.module, images, prompt, part.settings.processor, device, dtype)


def remember(part: PlannerPart, settings: tuple, make: Callable[[], Plan]) -> Plan:
    """`make()`, unless this planner has lately made the plan of these settings.

    A loader that runs again for another component's sake makes ComfyUI plan again, though the planner is the same.
    """
    if settings not in part.plans:
        part.plans[settings] = make()
    part.plans[settings] = part.plans.pop(settings)  # the latest
    while len(part.plans) > PLANS:
        del part.plans[next(iter(part.plans))]
    return part.plans[settings]


def _load(part: PlannerPart, prepared: PreparedPlan) -> None:
    """Bring the planner to its device with room for the prompt's cache, and each image's cache and noise."""
    count, length = prepared.request.rows, prepared.prompt_length + prepared.planned + BUCKET
    kept = cache_nbytes(part.config.text_config, 1 + count, length, part.module.compute_dtype)
    kept += noise_nbytes(part.config, count, prepared.planned, WIDEST, prepared.sampling)
    comfy.model_management.load_models_gpu([part.patcher], memory_required=kept)


class Watch:
    """Progress of one plan: ComfyUI's bar at the running node, and an image of the tokens so far."""

    def __init__(self, part: PlannerPart, grids: dict[str, tuple[int, int]], total: int):
        self.bar = comfy.utils.ProgressBar(total)
        self.total, self.grids = total, grids
        self.colours = part.codebook_colours
        height, width = grids.get("preview", (0, 0))
        self.skipped = height * width  # tokens before the full grid
        self.shown = 0  # tokens in the last picture

    def __call__(self, done: int, total: int, stage: str, grid: str, tokens: torch.Tensor | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage != "plan":
            return
        picture = None
        if done // PREVIEW_EVERY > self.shown // PREVIEW_EVERY or done == total:
            self.shown = done
            start = self.skipped if grid == "full" else 0
            picture = ("JPEG", draw_tokens(tokens[:, start:], self.grids[grid], self.colours), PREVIEW_SIDE)
        self.bar.update_absolute(done, self.total, picture)
