"""Running the planner inside ComfyUI: memory, progress, interruption and the picture of a plan as it grows.

Letters: B images, h w full grid, ph pw preview grid, V codebook size.
"""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image

from ...pipeline.devices.capabilities import check_finite
from ...pipeline.devices.device import assert_on, current
from ...pipeline.geometry import check_size, preview_grid, token_grid
from ...pipeline.glm_image import check_prompts
from ...pipeline.layout.control import merge_controls
from ...pipeline.models.kv_cache import BUCKET, cache_nbytes
from ...pipeline.plan import Plan, Reference
from ...pipeline.planning.controls import GridControl
from ...pipeline.planning.decode_step import DecodeStep
from ...pipeline.planning.generate import decode
from ...pipeline.planning.graphs import GraphRunner
from ...pipeline.planning.prefill import prefill
from ...pipeline.planning.prompt import check_length, collate
from ...pipeline.planning.references import PreparedReference, prepare_reference
from ...pipeline.planning.sampling import check_sampling
from .images import to_pil
from .loading import PlannerPart

MAX_COUNT = 64
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
    """Lay out `count` images, the k-th with seed + k. `images` are references, (H, W, 3) in 0..1 each.

    Loads the planner, shows progress and the plan as it grows at the running node, and stops within a token when
    the user interrupts.
    """
    check_prompts(prompt)
    check_size(height, width)
    sampling = part.sampling.override(temperature, top_p)
    check_sampling(sampling)
    grid = token_grid(height, width)
    preview = None if images else preview_grid(*grid)
    references = [prepare_reference(to_pil(image), part.processor) for image in images]
    encoded = part.prompts.encode(prompt, grid, preview, [reference.grid for reference in references])
    grids = [g for g in (preview, grid) if g]
    length, planned = check_length([encoded], grids, part.config), sum(h * w for h, w in grids)
    _load(part, length + planned, count)
    seeds, device = [seed + k for k in range(count)], part.patcher.load_device
    with current(device):
        tokens = [_tokenize(part, reference) for reference in references]
        if part.guide:
            controls = merge_controls(controls or {}, part.guide(part, _named(preview, grid)))
        batch = collate([encoded], grid, preview, part.config, tokens)
        watch = Watch(part, grid, preview, planned)
        prefix = prefill(part.module, batch, device, watch.reading)
        assert_on(device, logits=prefix.logits)
        check_finite(prefix.logits, "planner")
        tables = decode(
            part.module, prefix, sampling, seeds, controls=controls, progress=watch.planning, run=_steps(part)
        )
    return Plan(
        tables["full"],
        grid,
        part.codebook_size,
        [prompt] * count,
        seed,
        tables.get("preview"),
        preview,
        [Reference(r.pixels, ids, r.grid) for r, ids in zip(references, tokens)],
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


def _named(preview: tuple[int, int] | None, grid: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {"preview": preview, "full": grid} if preview else {"full": grid}


def _load(part: PlannerPart, length: int, count: int) -> None:
    """Bring the planner to its device with room for caches of `length` tokens for the prompt and every image."""
    kept = cache_nbytes(part.config.text_config, 1 + count, length + BUCKET, part.module.compute_dtype)
    comfy.model_management.load_models_gpu([part.patcher], memory_required=kept)


def _tokenize(part: PlannerPart, reference: PreparedReference) -> torch.Tensor:
    pixels = reference.vit_pixels.to(part.patcher.load_device, part.module.compute_dtype)
    with torch.no_grad():
        return part.module.tokenize_image(pixels).cpu()


def _steps(part: PlannerPart) -> Callable[[DecodeStep, int], None]:
    """What plans token k: a captured graph where the whole planner lies on a device that has them."""
    graphs = GraphRunner(part.module, part.patcher.load_device)

    def run(step: DecodeStep, k: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        graphs(step, k)

    return run


class Watch:
    """Progress callbacks of one plan: ComfyUI's bar at the running node, and a picture of the tokens so far."""

    def __init__(self, part: PlannerPart, grid: tuple[int, int], preview: tuple[int, int] | None, total: int):
        self.bar = comfy.utils.ProgressBar(total)
        self.total = total
        self.colours = part.codebook_colours
        self.grids = {"preview": preview, "full": grid}
        self.skipped = preview[0] * preview[1] if preview else 0

    def reading(self, done: int, total: int, **_) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def planning(self, done: int, total: int, grid: str, tokens: torch.Tensor) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
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
