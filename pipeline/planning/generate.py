"""The loop of planning: pass after pass until every grid is complete.

Inside a grid only codebook ids are possible and the number of tokens is fixed, so every plan is complete and in range.
Shapes: B images, N tokens to plan, V codebook size.
"""

import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch

from ..errors import InputError
from ..models.config import GenerationConfig
from ..models.planner import Planner
from ..progress import Progress
from .controls import GridControl, check_controls, grid_at, grid_spans, steering
from .decode_step import BlockNoise, DecodeStep, Step
from .prefill import Prefix
from .readback import Readback
from .rows import MeasuredRows, check_rows
from .sampling import check_sampling
from .steps import fits, new_step
from .window_step import WindowNoise, WindowStep

READ_EVERY = 16  # single tokens between two reports of progress on an accelerator, where each waits for the device
_measured: WeakKeyDictionary = WeakKeyDictionary()  # planner -> {what was planned: rows that plan it fastest}


@torch.no_grad()
def decode(
    planner: Planner,
    prefix: Prefix,
    sampling: GenerationConfig,
    seeds: Sequence[int],
    *,
    controls: dict[str, GridControl] | None = None,
    progress: Progress | None = None,
    rows: int | None = None,
    step: Step | None = None,
    run: Callable[[Step, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Plan one image for each seed -> {"preview": (B, ph*pw), "full": (B, h*w)} int64 ids on the CPU.

    The prefix has one prompt, shared by all images, or one for each. Temperature 0 is greedy. `controls` may hold a
    `GridControl` for "preview" and "full". `progress(done, total, grid=, tokens=)` gets the (B, done) ids so far after
    every pass and may raise to interrupt. `rows` are those of a pass, None what suits device and batch. `step` reuses
    the buffers of an earlier call that `fits`; `run(step, k)` does the pass of token k, as a captured graph's replay.
    """
    grids = grid_spans(prefix.batch.grids)
    controls = controls or {}
    check_sampling(sampling)
    check_rows(rows)
    _check_seeds(prefix, seeds)
    check_controls(controls, grids, planner.config.vq_config.num_embeddings)
    if step is None:
        step = new_step(planner, prefix, sampling, len(seeds), rows)
    elif not fits(step, prefix, sampling, len(seeds), rows):
        raise ValueError("this step was made for another batch, size, sampling or rows; make one with new_step")
    step.start(prefix, steering(controls, grids, len(seeds), step.planned))
    plan = _one_by_one if isinstance(step, DecodeStep) else _by_windows
    with torch.inference_mode():  # a tenth faster than no_grad alone for small models on a CPU
        tokens = plan(step, prefix, seeds, run or type(step).eager, _reporter(progress, grids))
    return {name: tokens[:, span.start : span.stop].clone() for name, span in grids.items()}


def _one_by_one(step: DecodeStep, prefix: Prefix, seeds: Sequence[int], run, report) -> torch.Tensor:
    """(B, N) tokens, one a pass."""
    noise, every = BlockNoise(step, seeds), 1 if step.device.type == "cpu" else READ_EVERY
    for k in range(step.planned):
        noise.before(k)
        if k == 0:
            step.first(prefix.logits)
        else:
            run(step, k)
        noise.after(k)
        if report and ((k + 1) % every == 0 or k + 1 == step.planned):
            report(step.tokens[:, : k + 1].cpu(), step.planned)
    return step.tokens.cpu()


def _by_windows(step: WindowStep, prefix: Prefix, seeds: Sequence[int], run, report) -> torch.Tensor:
    """(B, N) tokens, several a pass."""
    noise, readback, measured = WindowNoise(step, seeds), Readback(step.state), _rows_to_measure(step)
    noise.until(2 * step.rows)
    step.first(prefix.logits)
    known = [1] * step.batch
    while min(known) < step.planned:
        noise.until(max(known) + 3 * step.rows)  # of this pass, its drafts, and the pass whose end is not yet known
        start = time.thread_time()  # of a CPU, which other programs may share
        if measured:
            step.width = measured.next()
        run(step, max(known))
        state = readback.after_pass()
        if state is None:
            continue
        before, known = known, state[:, 0].tolist()
        if measured:
            gains = [now - then for now, then in zip(known, before) if then < step.planned]
            measured.note(step.width, time.thread_time() - start, gains)
        if report:
            report(state[:, 1 : 1 + min(known)], step.planned)
    return state[:, 1 : 1 + step.planned].clone()


def _rows_to_measure(step: WindowStep) -> MeasuredRows | None:
    """What chooses the rows of each pass, with what it learned from earlier plans, where the tokens allow a choice."""
    if step.asked is not None or not step.free or step.device.type != "cpu":
        return None
    known = _measured.setdefault(step.planner, {})
    return known.setdefault((step.batch, step.planned, step.sampling), MeasuredRows(step.rows))


def _reporter(progress: Progress | None, grids: dict[str, range]) -> Callable[[torch.Tensor, int], None] | None:
    """Reports (B, n) tokens of `total`, if anyone listens."""
    if progress is None:
        return None

    def report(tokens: torch.Tensor, total: int) -> None:
        done = tokens.shape[1]
        progress(done, total, grid=grid_at(grids, done - 1)[0], tokens=tokens)

    return report


def _check_seeds(prefix: Prefix, seeds: Sequence[int]) -> None:
    if prefix.cache.batch not in (1, len(seeds)):
        raise InputError(f"{prefix.cache.batch} prompts need as many seeds, got {len(seeds)}")
