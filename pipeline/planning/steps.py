"""The step that suits a plan: one token a pass or several, with buffers of the right size."""

import logging
from weakref import WeakKeyDictionary

import torch

from ..loading.work_needs import NOISE_BYTES
from ..models.config import GenerationConfig
from ..models.kv_cache import BUCKET
from ..models.planner import Planner
from .decode_step import DecodeStep, Step
from .prefill import Prefix
from .rows import default_rows
from .window_step import WindowStep, noise_nbytes, shifting_rows

logger = logging.getLogger(__name__)

_verified: WeakKeyDictionary = WeakKeyDictionary()  # planner -> {batch, rows, capacity: why rows shift, or None}


@torch.no_grad()
def new_step(planner: Planner, prefix: Prefix, sampling: GenerationConfig, batch: int, rows: int | None = None) -> Step:
    """Buffers for plans from this prefix, with room for prompts of similar length.

    `rows` of a pass are as asked, None what suits device and batch; 1 where several would not plan the same tokens.
    """
    planned, device = prefix.batch.decode_positions.shape[2], prefix.logits.device
    sizes = {"batch": batch, "planned": planned, "device": device}
    chosen = default_rows(device, prefix.cache.keys.dtype, batch) if rows is None else rows
    step = _window(planner, prefix, sampling, chosen, sizes) if chosen > 1 else None
    if step is None:
        step = DecodeStep(planner, sampling, capacity=_capacity(prefix, planned, 1), **sizes)
    step.asked = rows
    return step


def _window(planner: Planner, prefix: Prefix, sampling: GenerationConfig, rows: int, sizes: dict) -> WindowStep | None:
    """A step of several rows, or None, with the reason in the log."""
    needed = noise_nbytes(planner.config, sizes["batch"], sizes["planned"], rows, sampling)
    if needed > NOISE_BYTES:
        logger.warning("planning one token a pass: the noise of all tokens would take %.1f GiB", needed / 2**30)
        return None
    step = WindowStep(planner, sampling, rows=rows, capacity=_capacity(prefix, sizes["planned"], rows), **sizes)
    if step.free:
        return step
    verified = _verified.setdefault(planner, {})
    key = step.batch, rows, step.cache.capacity
    if key not in verified:
        verified[key] = shifting_rows(step, prefix)
    if verified[key]:
        logger.warning("planning one token a pass on %s: %s", step.device, verified[key])
        return None
    return step


def fits(step: Step, prefix: Prefix, sampling: GenerationConfig, batch: int, rows: int | None = None) -> bool:
    """Whether a step can take these; a prompt of another length may, as long as its plan has the same grids.

    A window reads its whole cache, whose size is therefore part of what defines a plan in half precision.
    """
    planned = prefix.batch.decode_positions.shape[2]
    if (step.sampling, step.batch, step.planned, step.asked) != (sampling, batch, planned, rows):
        return False
    if step.rows == 1:
        return prefix.length + planned <= step.cache.capacity
    return step.cache.capacity == _capacity(prefix, planned, step.rows)


def _capacity(prefix: Prefix, planned: int, rows: int) -> int:
    """Slots for a prompt, its plan, and the rows of a window that stand beyond the last token."""
    return -(-(prefix.length + planned + rows - 1) // BUCKET) * BUCKET


def plan_rows(step: Step) -> int:
    """Rows of a pass that the step's plans depend on: 1 where any number gives the plan of one token a pass."""
    return 1 if step.cache.keys.dtype == torch.float32 else step.rows
