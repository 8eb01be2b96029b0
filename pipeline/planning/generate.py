"""The loop of planning: token after token until every grid is complete.

Inside a grid only codebook ids are possible and the number of tokens is fixed, so every plan is complete and in range.
Shapes: B images, N tokens to plan, V codebook size.
"""

from collections.abc import Callable, Sequence

import torch

from ..errors import InputError
from ..models.config import GenerationConfig
from ..models.planner import Planner
from ..progress import Progress
from .controls import GridControl, check_controls, forced_tokens, grid_at, grid_spans
from .decode_step import NOISE_ROWS, DecodeStep, new_step
from .prefill import Prefix
from .sampling import Noise, check_sampling

READ_EVERY = 16  # tokens between two progress reports on an accelerator, where each report waits for the device


@torch.no_grad()
def decode(
    planner: Planner,
    prefix: Prefix,
    sampling: GenerationConfig,
    seeds: Sequence[int],
    *,
    controls: dict[str, GridControl] | None = None,
    progress: Progress | None = None,
    read_every: int | None = None,
    step: DecodeStep | None = None,
    run: Callable[[DecodeStep, int], None] = DecodeStep.eager,
) -> dict[str, torch.Tensor]:
    """Plan one image for each seed -> {"preview": (B, ph*pw), "full": (B, h*w)} int64 ids on the CPU.

    The prefix has one prompt, shared by all images, or one for each. Temperature 0 is greedy. `controls` may hold a
    `GridControl` for "preview" and "full". `progress(done, total, grid=, tokens=)` gets the (B, done) ids so far
    every `read_every` tokens (default: each on the CPU, every 16th elsewhere) and may raise to interrupt. `step`
    reuses the buffers of an earlier call that `fits`; `run(step, k)` plans token k, as a captured graph's replay does.
    """
    device = prefix.logits.device
    grids = grid_spans(prefix.batch.grids)
    controls = controls or {}
    check_sampling(sampling)
    _check_seeds(prefix, seeds)
    check_controls(controls, grids, planner.config.vq_config.num_embeddings)
    total = prefix.batch.decode_positions.shape[2]
    biased = any(control.logit_bias is not None for control in controls.values())
    if step is None:
        step = new_step(planner, prefix, sampling, len(seeds), biased)
    elif not step.fits(prefix, sampling, len(seeds), biased):
        raise ValueError("this step was made for another batch, size or sampling; make one with new_step")
    step.start(prefix, *forced_tokens(controls, grids, len(seeds), total))
    noise = Noise(seeds, step.codebook)
    read_every = read_every or (1 if device.type == "cpu" else READ_EVERY)
    block = _next_block(step, noise, total)
    for k in range(total):
        if k % NOISE_ROWS == 0:
            _fill_block(step, block, controls, grids, k, min(NOISE_ROWS, total - k))
        with torch.inference_mode():  # a tenth faster than no_grad alone for small models on a CPU
            if k == 0:
                step.first(prefix.logits)
            else:
                run(step, k)
        if (k + 1) % NOISE_ROWS == 0:  # before anything waits for the device, which is busy meanwhile
            block = _next_block(step, noise, total - k - 1)
        if progress and ((k + 1) % read_every == 0 or k + 1 == total):
            progress(k + 1, total, grid=grid_at(grids, k)[0], tokens=step.tokens[:, : k + 1].cpu())
    tokens = step.tokens.cpu()
    return {name: tokens[:, span.start : span.stop].clone() for name, span in grids.items()}


def _check_seeds(prefix: Prefix, seeds: Sequence[int]) -> None:
    if prefix.cache.batch not in (1, len(seeds)):
        raise InputError(f"{prefix.cache.batch} prompts need as many seeds, got {len(seeds)}")


def _next_block(step: DecodeStep, noise: Noise, left: int) -> torch.Tensor | None:
    """Noise of the next tokens of `left`, ready to be sent without waiting; None when nothing is sampled."""
    if step.noise is None or not left:
        return None
    block = noise.block(min(NOISE_ROWS, left))
    if step.noise.device.type == "cpu":
        return block
    return block.pin_memory()  # only pinned memory is copied while the device works


def _fill_block(step: DecodeStep, block, controls, grids: dict[str, range], start: int, rows: int) -> None:
    """Send noise and bias of the next tokens to the device without waiting for it."""
    if block is not None:
        step.noise[:rows].copy_(block, non_blocking=True)
    if step.bias is None:
        return
    for row in range(rows):
        name, span = grid_at(grids, start + row)
        bias = controls[name].bias_at(start + row - span.start) if name in controls else None
        step.bias[row] = 0 if bias is None else bias.to(step.bias.device, non_blocking=True)
