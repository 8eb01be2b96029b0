"""Running the planner inside ComfyUI: memory, progress, interruption and the picture of a plan as it grows.

Letters: B images, h w full grid, ph pw preview grid, V codebook size.
"""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image

from ...pipeline.devices.device import current
from ...pipeline.layout.control import merge_controls
from ...pipeline.models.kv_cache import BUCKET, cache_nbytes
from ...pipeline.plan import Plan
from ...pipeline.planning import make_plan as pipeline_plan
from ...pipeline.planning.controls import GridControl
from ...pipeline.planning.make_plan import PlanRequest
from .images import to_pil
from .loading import PlannerPart

PLANS = 4  # of a planner that are remembered, some kilobytes each and the pixels of references
PREVIEW_EVERY = 8  # tokens between two pictures of the plan
PREVIEW_SIDE = 512  # px of the longer side
UNPLANNED = (40, 40, 40)


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
    images: Sequence[torch.Tensor] = (),
    controls: dict[str, GridControl] | None = None,
) -> Plan:
    """Plan `count` images, the k-th with seed + k. `images` are references, (H, W, 3) in 0..1 each.

    Loads the planner, shows progress and the plan as it grows at the running node, and stops within a token when
    the user interrupts.
    """
    pictures = [to_pil(image) for image in images]
    request = PlanRequest(prompt, height, width, pictures, seed, count, temperature, top_p)
    prepared = part.settings.prepare(request)
    _load(part, prepared.prompt_length + prepared.planned, count)
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
            before_token=comfy.model_management.throw_exception_if_processing_interrupted,
        )


def remember(part: PlannerPart, settings: tuple, make: Callable[[], Plan]) -> Plan:
    """`make()`, unless this planner has lately made the plan of these settings.

    A loader that runs again for another part's sake makes ComfyUI plan again, though the planner is the same object.
    """
    if settings not in part.plans:
        part.plans[settings] = make()
    part.plans[settings] = part.plans.pop(settings)  # the latest
    while len(part.plans) > PLANS:
        del part.plans[next(iter(part.plans))]
    return part.plans[settings]


def _load(part: PlannerPart, length: int, count: int) -> None:
    """Bring the planner to its device with room for caches of `length` tokens for the prompt and every image."""
    kept = cache_nbytes(part.config.text_config, 1 + count, length + BUCKET, part.module.compute_dtype)
    comfy.model_management.load_models_gpu([part.patcher], memory_required=kept)


class Watch:
    """Progress of one plan: ComfyUI's bar at the running node, and a picture of the tokens so far."""

    def __init__(self, part: PlannerPart, grids: dict[str, tuple[int, int]], total: int):
        self.bar = comfy.utils.ProgressBar(total)
        self.total, self.grids = total, grids
        self.colours = part.codebook_colours
        height, width = grids.get("preview", (0, 0))
        self.skipped = height * width  # tokens before the full grid

    def __call__(self, done: int, total: int, stage: str, grid: str, tokens: torch.Tensor | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if stage != "plan":
            return
        picture = None
        if done % PREVIEW_EVERY == 0 or done == total:
            start = self.skipped if grid == "full" else 0
            picture = ("JPEG", draw_tokens(tokens[:, start:], self.grids[grid], self.colours), PREVIEW_SIDE)
        self.bar.update_absolute(done, self.total, picture)


def draw_tokens(tokens: torch.Tensor, grid: tuple[int, int], colours: torch.Tensor) -> Image.Image:
    """(B, n) ids of the first n tokens of a grid -> the B grids side by side, one colour a codebook entry."""
    rows, done = tokens.shape
    canvas = torch.tensor(UNPLANNED, dtype=torch.uint8).expand(rows, grid[0] * grid[1], 3).clone()
    canvas[:, :done] = colours[tokens]
    joined = canvas.unflatten(1, grid).movedim(0, 1).flatten(1, 2)
    scale = max(1, PREVIEW_SIDE // max(joined.shape[:2]))
    return Image.fromarray(np.kron(joined.numpy(), np.ones((scale, scale, 1), np.uint8)))


def plan_pictures(part: PlannerPart, plan: Plan) -> torch.Tensor:
    """(B, H, W, 3) pictures of a plan's full grids in 0..1, about 512 px."""
    pictures = [draw_tokens(row[None], plan.grid, part.codebook_colours) for row in plan.prior_token_ids_d32]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
