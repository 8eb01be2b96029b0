"""Planning: the prompt once through the planner, then token after token until every grid is complete.

`prefill` makes a `Prefix`, which later calls reuse when only the seed changes. `decode` draws the tokens. Inside a
grid only codebook ids are possible and the number of tokens is fixed, so every plan is complete and in range.
Noise is drawn on the CPU, from a generator of its own for every image, and added to the scores (Gumbel-max): image k
of a batch depends on its own seed only, devices agree up to rounding, and nothing is read back to choose a token.
Letters: B images, L prompt tokens, N tokens to plan, V codebook size, S cache slots read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..models.config import GenerationConfig
from ..models.kv_cache import BUCKET, KVCache, bucket_length
from ..models.planner import Planner
from ..models.planner_cpu import TokenPass
from ..progress import Progress
from .prompt import PromptBatch

PREFILL_CHUNK = 2048  # prompt tokens in one pass; bounds the mask's memory for prompts with many references
NOISE_ROWS = 32  # tokens whose noise is drawn and sent at once
READ_EVERY = 16  # tokens between two progress reports on an accelerator, where each report waits for the device
MOST_DROPPED = 1 - 3e-5  # of all probability; the best of 16384 ids has at least twice what is left, so it stays
TINY = 1e-10  # float32 uniforms can be exactly 0, whose Gumbel noise would be -inf


@dataclass(frozen=True)
class GridControl:
    """What a caller imposes on one grid; rows may be left out of any tensor to mean all images.

    `logit_bias`: (h*w, V) or (B, h*w, V) added to the logits before temperature, or a function from a position in
    the grid to (V,) or (B, V) or None. `forced` int64 (h*w,) or (B, h*w) replaces what was drawn where `forced_mask`,
    bool of the same shape, is True.
    """

    logit_bias: torch.Tensor | Callable[[int], torch.Tensor | None] | None = None
    forced: torch.Tensor | None = None
    forced_mask: torch.Tensor | None = None

    def bias_at(self, position: int) -> torch.Tensor | None:
        if self.logit_bias is None or callable(self.logit_bias):
            return self.logit_bias and self.logit_bias(position)
        return self.logit_bias[..., position, :]


@dataclass(frozen=True)
class Prefix:
    """A prompt batch after the planner read it; never written again, so any number of plans can start from it.

    `cache` holds L slots for each prompt, `logits` (B, V) those of the first token to plan.
    """

    batch: PromptBatch
    cache: KVCache
    logits: torch.Tensor

    @property
    def length(self) -> int:
        return self.batch.ids.shape[1]


@torch.no_grad()
def prefill(
    planner: Planner, batch: PromptBatch, device: torch.device | str, progress: Progress | None = None
) -> Prefix:
    """Read the prompts. `progress(done, total, grid="prompt")` comes after every part and may raise to interrupt."""
    rows, length = batch.ids.shape
    cache = planner.new_cache(rows, length, device)
    ids, cos_sin = batch.ids.to(device), planner.rope_tables(batch.positions.to(device))
    for start in range(0, length, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, length)
        mask = prompt_mask(batch.mask, start, stop).to(device)
        tables = tuple(table[:, :, start:stop] for table in cos_sin)
        logits = planner(ids[:, start:stop], tables, mask, cache, start, stop)
        if progress:
            progress(stop, length, grid="prompt")
    return Prefix(batch, cache, logits[:, : planner.config.vq_config.num_embeddings])


def prompt_mask(present: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """(B, L) bool, False on padding -> (B, 1, stop - start, stop) of which keys each query in start..stop sees.

    Padding sees itself: a row of no keys at all is NaN in some attention kernels.
    """
    queries, keys = torch.arange(start, stop)[:, None], torch.arange(stop)
    return ((keys <= queries) & present[:, None, None, :stop]) | (keys == queries)


class DecodeStep:
    """One token for each of `rows` images: the planner, the choice of a token, and every buffer they use.

    Nothing in a step depends on a value on the device and no shape changes, so `captured` can become a graph: it
    takes its position from `index` and moves it on. `eager` does the same for a Python position and reads exactly
    the slots in use. `start` rewrites all buffers in place for another prompt, seed or control.
    """

    def __init__(
        self,
        planner: Planner,
        sampling: GenerationConfig,
        *,
        rows: int,
        capacity: int,
        planned: int,
        device: torch.device | str,
        biased: bool = False,
    ):
        text = planner.config.text_config
        codebook = planner.config.vq_config.num_embeddings
        rotary = int(text.head_dim * text.rope_parameters.partial_rotary_factor)
        self.planner, self.sampling, self.planned, self.codebook = planner, sampling, planned, codebook
        self.cache = planner.new_cache(rows, capacity, device)
        self.tokens = torch.zeros(rows, planned, dtype=torch.long, device=device)
        self.forced = torch.zeros_like(self.tokens)
        self.forced_mask = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.tables = tuple(torch.zeros(rows, 1, planned, rotary, device=device) for _ in range(2))
        self.visible = torch.ones(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self.slots = torch.arange(capacity, device=device)
        self.index = torch.ones(1, dtype=torch.long, device=device)  # the token a captured step plans
        self.offset = torch.zeros(1, dtype=torch.long, device=device)  # the slot of token 0, on the device
        self.length = 0  # the same as a Python int
        self.padded = self.any_forced = False
        self.single: TokenPass | None = None  # the planner's pass over one token, where there is a faster form
        block = (min(NOISE_ROWS, planned), rows, codebook)
        self.noise = None if sampling.temperature == 0 else torch.zeros(block, device=device)
        self.bias = torch.zeros(block, device=device) if biased else None

    @property
    def rows(self) -> int:
        return self.cache.batch

    def fits(self, prefix: Prefix, sampling: GenerationConfig, rows: int, biased: bool) -> bool:
        """Whether `start` can take these; a prompt of another length may, as long as its plan has the same grids."""
        planned = prefix.batch.decode_positions.shape[2]
        made_for = (self.sampling, self.rows, self.planned, self.bias is not None)
        return made_for == (sampling, rows, planned, biased) and prefix.length + planned <= self.cache.capacity

    def start(self, prefix: Prefix, forced: torch.Tensor | None = None, forced_mask: torch.Tensor | None = None):
        """Copy a prefix (of one row for all, or of one a row) and the forced tokens (B, N) in; the next token is 0."""
        batch = prefix.batch
        self.cache.take_prefix(prefix.cache, prefix.length)
        self.length, self.padded = prefix.length, batch.padded
        self.offset.fill_(prefix.length)
        self.index.fill_(1)
        self.visible.fill_(True)
        self.visible[..., : prefix.length] = batch.mask[:, None, None].to(self.visible.device)
        for table, new in zip(self.tables, self.planner.rope_tables(batch.decode_positions)):
            table.copy_(new)
        suits = TokenPass.suits(self.planner, self.tokens.device)
        self.single = TokenPass(self.planner, self.cache, self.tables) if suits else None
        self.any_forced = forced is not None
        self.forced_mask.zero_()
        if forced is not None:
            self.forced.copy_(forced)
            self.forced_mask.copy_(forced_mask)

    def first(self, logits: torch.Tensor) -> None:
        """Choose token 0 from the prefix's logits (1 or B, V)."""
        self._choose(logits.expand(self.rows, -1), 0)

    def eager(self, k: int) -> None:
        """Plan token `k`, 1 or later, from token k - 1."""
        read = self.length + k
        mask = self.visible[..., :read] if self.padded else None
        if self.single:
            logits = self.single(self.tokens.select(1, k - 1), k - 1, mask, read - 1)
        else:
            tables = tuple(table.narrow(2, k - 1, 1) for table in self.tables)
            logits = self.planner(self.tokens.narrow(1, k - 1, 1), tables, mask, self.cache, read - 1, read)
        self._choose(logits, k)

    def captured(self, read: int) -> None:
        """Plan token `index` with the first `read` slots, `bucket_length(length + index, capacity)` or more."""
        last = self.index - 1
        slot = self.offset + last
        mask = self.visible[..., :read] & (self.slots[:read] <= slot)
        tables = tuple(table.index_select(2, last) for table in self.tables)
        logits = self.planner(self.tokens.index_select(1, last), tables, mask, self.cache, slot, read)
        self._choose(logits, self.index)
        self.index.add_(1)

    def bucket(self, k: int) -> int:
        """How many slots the captured step of token `k` reads."""
        return bucket_length(self.length + k, self.cache.capacity)

    def _choose(self, logits: torch.Tensor, k: int | torch.Tensor) -> None:
        """Write token `k` of every image from (B, V or more) logits."""
        scores = logits[:, : self.codebook].float()
        row = k % NOISE_ROWS
        if self.bias is not None:
            scores = scores + _row(self.bias, 0, row).squeeze(0)
        if self.noise is not None:
            scores = warp(scores, self.sampling) + _row(self.noise, 0, row).squeeze(0)
        token = scores.argmax(dim=-1, keepdim=True)
        if self.any_forced or not isinstance(k, int):
            token = torch.where(_row(self.forced_mask, 1, k), _row(self.forced, 1, k), token)
        if isinstance(k, int):
            self.tokens.narrow(1, k, 1).copy_(token)
        else:
            self.tokens.index_copy_(1, k, token)


def _row(table: torch.Tensor, dim: int, k: int | torch.Tensor) -> torch.Tensor:
    return table.narrow(dim, k, 1) if isinstance(k, int) else table.index_select(dim, k)


def warp(logits: torch.Tensor, sampling: GenerationConfig) -> torch.Tensor:
    """(B, V) float32 logits -> scores whose softmax is the distribution to draw from, -inf where nothing is drawn.

    transformers' order: temperature, top_k (0 keeps all), top_p. Equal scores leave in the order of their ids, so
    that devices agree.
    """
    scores = logits / sampling.temperature if sampling.temperature != 1 else logits
    if 0 < sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -math.inf)
    if sampling.top_p < 1:
        ascending, order = scores.sort(dim=-1, stable=True)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= min(1 - sampling.top_p, MOST_DROPPED)
        scores = torch.empty_like(scores).scatter_(1, order, ascending.masked_fill_(dropped, -math.inf))
    return scores


class Noise:
    """Gumbel noise for one image after another token, the same whatever the block size or the batch."""

    def __init__(self, seeds: Sequence[int], codebook: int):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.codebook = codebook

    def block(self, rows: int) -> torch.Tensor:
        """The next (rows, B, V) on the CPU."""
        uniform = [torch.rand(rows, self.codebook, generator=generator) for generator in self.generators]
        return torch.stack(uniform, dim=1).clamp_(min=TINY).log_().neg_().log_().neg_()


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
    _check_rows(prefix, seeds, controls, grids, planner.config.vq_config.num_embeddings)
    total = prefix.batch.decode_positions.shape[2]
    biased = any(control.logit_bias is not None for control in controls.values())
    if step is None:
        step = new_step(planner, prefix, sampling, len(seeds), biased)
    elif not step.fits(prefix, sampling, len(seeds), biased):
        raise ValueError("this step was made for another batch, size or sampling; make one with new_step")
    step.start(prefix, *_forced(controls, grids, len(seeds), total))
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
            progress(k + 1, total, grid=_grid_at(grids, k)[0], tokens=step.tokens[:, : k + 1].cpu())
    tokens = step.tokens.cpu()
    return {name: tokens[:, span.start : span.stop].clone() for name, span in grids.items()}


def new_step(
    planner: Planner, prefix: Prefix, sampling: GenerationConfig, rows: int, biased: bool = False
) -> DecodeStep:
    """Buffers for plans from this prefix, with room for prompts of similar length."""
    planned = prefix.batch.decode_positions.shape[2]
    capacity = -(-(prefix.length + planned) // BUCKET) * BUCKET
    device = prefix.logits.device
    return DecodeStep(planner, sampling, rows=rows, capacity=capacity, planned=planned, device=device, biased=biased)


def grid_spans(grids: Sequence[tuple[int, int]]) -> dict[str, range]:
    """Grids in planning order -> where the tokens of "preview" (if there is one) and "full" lie."""
    spans, start = {}, 0
    for name, (h, w) in zip(("preview", "full")[-len(grids) :], grids):
        spans[name] = range(start, start + h * w)
        start += h * w
    return spans


def check_sampling(sampling: GenerationConfig) -> None:
    """Refuse values that no distribution has."""
    if not 0 <= sampling.temperature < math.inf:
        raise InputError(f"temperature {sampling.temperature} is not accepted; use 0 (greedy) or more, such as 0.9")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p {sampling.top_p} is not accepted; use more than 0 and at most 1, such as 0.75")
    if sampling.top_k < 0:
        raise InputError(f"top_k {sampling.top_k} is not accepted; use 0 (off) or more")


def _check_rows(prefix: Prefix, seeds, controls: dict[str, GridControl], grids: dict[str, range], codebook: int):
    if prefix.cache.batch not in (1, len(seeds)):
        raise InputError(f"{prefix.cache.batch} prompts need as many seeds, got {len(seeds)}")
    for name, control in controls.items():
        if name not in grids:
            raise InputError(f"there is no {name!r} grid to control in this plan; it has {', '.join(grids)}")
        if (control.forced is None) != (control.forced_mask is None):
            raise InputError(f"forced tokens of the {name} grid need both the tokens and their mask")
        if control.forced is None:
            continue
        if control.forced.shape[-1] != len(grids[name]) or control.forced.shape != control.forced_mask.shape:
            raise InputError(f"forced tokens of the {name} grid must number {len(grids[name])}, and their mask too")
        used = control.forced[control.forced_mask]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < codebook:
            raise InputError(f"forced tokens of the {name} grid lie outside the codebook of {codebook}")


def _forced(controls: dict[str, GridControl], grids: dict[str, range], rows: int, total: int):
    """The forced tokens and their mask over all grids, (B, N) each, or nothing."""
    forcing = {name: control for name, control in controls.items() if control.forced is not None}
    if not forcing:
        return ()
    tokens = torch.zeros(rows, total, dtype=torch.long)
    mask = torch.zeros(rows, total, dtype=torch.bool)
    for name, control in forcing.items():
        span = slice(grids[name].start, grids[name].stop)
        tokens[:, span], mask[:, span] = control.forced.cpu(), control.forced_mask.cpu()
    return tokens, mask


def _next_block(step: DecodeStep, noise: Noise, left: int) -> torch.Tensor | None:
    """Noise of the next tokens of `left`, ready to be sent without waiting; None when nothing is drawn."""
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
        name, span = _grid_at(grids, start + row)
        bias = controls[name].bias_at(start + row - span.start) if name in controls else None
        step.bias[row] = 0 if bias is None else bias.to(step.bias.device, non_blocking=True)


def _grid_at(grids: dict[str, range], k: int) -> tuple[str, range]:
    return next((name, span) for name, span in grids.items() if k in span)
