"""Several exact tokens a pass: the last known token and drafts of the next ones go through the planner together.

Noise is fixed by the seed, so what follows a token is a function of the tokens up to it, and any draft can be checked:
drafts equal to what that function says are known, the first that differs is replaced by it. The tokens are those of
planning one by one, whatever was drafted. It is speculative Jacobi decoding (Teng and others 2024, arXiv 2410.01699)
with the plan's own noise, so nothing is approximate. What that lacks: the position after a miss is drafted again, from
the scores of the last right row and its own noise, because what was said there followed a wrong token.

In half precision a pass over R rows rounds otherwise than one over a single row, so R is part of what defines a plan.
Drafts are not: with one shape and one read length for every pass a row's logits have the same bits wherever it stands,
which `shifting_rows` verifies on the device.
Shapes: B images, N tokens to plan, R rows of a pass, V codebook size, S cache slots read, D head dim.
"""

from collections.abc import Sequence

import torch

from ..devices import kernels
from ..models.config import GenerationConfig, VisionLanguageConfig
from ..models.planner import Planner
from ..models.planner_cpu import CpuDecode
from .controls import FREE, Steering, add_bias
from .decode_step import NOISE_ROWS, NOTHING, Step, sendable
from .prefill import Prefix
from .sampling import Noise, choose

ROOM = 2  # times the rows of a pass, behind the last token: where rows of the last passes and their drafts stand
ABOVE_FROM = 16  # rows of a pass from which copying the token above drafts better than the last row's scores


class WindowStep(Step):
    """Up to R tokens for each image. No shape changes and no value is read back, so a pass can become a graph.

    `state` (B, 1 + N + room) holds how many tokens of each image are known, then these tokens and drafts beyond them.
    Images advance on their own; one that is complete stays as it is, and what its passes say goes to the room.
    """

    def __init__(self, planner: Planner, sampling: GenerationConfig, *, rows: int, **sizes):
        super().__init__(planner, sampling, room=ROOM * rows, **sizes)
        text, device = planner.config.text_config, self.device
        self.rows = self.width = rows  # buffers have room for `rows`; an eager pass in float32 may have less
        total = self.forced.shape[1]
        self.state = torch.zeros(self.batch, 1 + total, dtype=torch.long, device=device)
        self.known, self.tokens = self.state[:, :1], self.state[:, 1:]
        self.rotary = int(text.head_dim * text.rope_parameters.partial_rotary_factor)
        self.tables = torch.zeros(self.batch * total, 2 * self.rotary, device=device)  # cos and sin of every position
        noisy = sampling.temperature != 0
        self.noise = torch.zeros(self.batch, total, self.codebook, device=device) if noisy else None
        self.first_rows = torch.arange(self.batch, device=device)[:, None] * total  # of each image, where images follow
        self.ahead = torch.arange(rows, device=device)
        self.sources = torch.zeros(total, rows - 1, dtype=torch.long, device=device)
        self.complete = torch.tensor([[self.planned]], device=device)
        self.index_shape = (self.batch, text.num_key_value_heads, -1, text.head_dim)
        self.group = text.num_attention_heads // text.num_key_value_heads
        self.dtype = self.cache.keys.dtype

    @property
    def free(self) -> bool:
        """Whether the tokens are the same for any number of rows, as float32 has digits enough."""
        return self.dtype == torch.float32

    def start(self, prefix: Prefix, steering: Steering = NOTHING) -> None:
        super().start(prefix, steering)
        cos, sin = self.planner.rope_tables(prefix.batch.decode_positions.to(self.device))
        tables = self.tables.view(self.batch, -1, 2 * self.rotary)
        tables[:, : self.planned] = torch.cat((cos, sin), dim=-1).squeeze(1)
        self.sources.copy_(above(prefix.batch.grids, len(self.sources), self.rows))
        suits = CpuDecode.suits(self.planner, self.device)
        self.fast = CpuDecode(self.planner, self.cache, tables[:, None].chunk(2, dim=-1)) if suits else None
        self.tokens.zero_()
        self.known.fill_(1)

    def first(self, logits: torch.Tensor) -> None:
        """Choose token 0 from the prefix's logits (1 or B, V), and draft the next from the same scores."""
        at = self.ahead.expand(self.batch, -1)
        self.tokens[:, : self.rows] = self._say(logits.float().expand(self.batch, -1)[:, None], at)

    def eager(self, k: int) -> None:
        """One pass, `k` tokens of the image that is furthest being known."""
        narrow = self.free and self.device.type == "cpu"
        self._run(self.width, self.length + k - 1 + self.width if narrow else self.cache.capacity)

    def captured(self, read: int) -> None:
        """One pass in which all rows see the first `read` slots; the same `read` in every pass."""
        self._run(self.rows, read)

    def bucket(self, k: int) -> int:
        """How many slots a captured pass reads."""
        return self.cache.capacity

    def _run(self, rows: int, read: int) -> None:
        at = self.known + self.ahead[:rows]  # (B, R) positions that this pass says
        ids = self.tokens.gather(1, at - 1)
        logits = self.logits(ids, at - 1, read)
        said = self._say(logits, at)
        misses = (ids[:, 1:] != said[:, :-1]).long().cumsum(dim=1)
        right = (misses == 0).long().sum(dim=1, keepdim=True)  # drafts, up to the first miss
        last_right = logits.gather(1, right[..., None].expand(-1, -1, self.codebook))
        missed, beyond = self.known + right + 1, at[:, -1:] + 1 + self.ahead[: rows - 1]
        self.tokens.scatter_(1, at, said)
        self.tokens.scatter_(1, missed, self._say(last_right, missed))
        self.tokens.scatter_(1, beyond, self._drafts(logits[:, -1:], at[:, -1], beyond))
        self.known.copy_(torch.minimum(missed, self.complete))

    def logits(self, ids: torch.Tensor, at: torch.Tensor, read: int) -> torch.Tensor:
        """(B, R) ids of the tokens at positions `at` -> float32 (B, R, V); their keys go to the cache."""
        slots = at + self.offset
        mask = self.slots[:read] <= slots[:, None, :, None]
        if self.padded or not self.fast:
            mask = mask & self.visible[..., :read]
        mask = kernels.window_mask(mask, self.group, self.dtype)
        flat = (at + self.first_rows).flatten()
        if self.fast:
            return self.fast.window(ids, flat, mask, slots, read)[..., : self.codebook]
        tables = self.tables.index_select(0, flat).view(self.batch, 1, -1, 2 * self.rotary).chunk(2, dim=-1)
        index = slots[:, None, :, None].expand(self.index_shape).contiguous()
        return self.planner(ids, tables, mask, self.cache, index, read, every_row=True)[..., : self.codebook].float()

    def _say(self, logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """(B, n or 1, V) logits -> the tokens of positions `at` (B, n), each with its own noise."""
        in_graph = self.device.type != "cpu"
        if in_graph or self.steering.bias is not None:
            ids, amounts = self.biased.gather(1, at), self.bias.gather(1, at)
            logits = add_bias(logits.expand(-1, at.shape[1], -1), ids[..., None], amounts[..., None])
        noise = None
        if self.noise is not None:
            flat = (at + self.first_rows).flatten()
            noise = self.noise.flatten(0, 1).index_select(0, flat).view(*at.shape, self.codebook)
        tokens = choose(logits, noise, self.sampling).expand_as(at)
        if in_graph or self.steering.forced is not None:
            forced = self.forced.gather(1, at)
            tokens = torch.where(forced == FREE, tokens, forced)
        return tokens

    def _drafts(self, logits: torch.Tensor, last: torch.Tensor, beyond: torch.Tensor) -> torch.Tensor:
        """Tokens for positions beyond the last one (B,) that a row said, from its logits or the tokens above."""
        if self.rows < ABOVE_FROM:
            return self._say(logits, beyond)
        sources = self.sources.index_select(0, last)[:, : beyond.shape[1]]
        drafts, forced = self.tokens.gather(1, sources), self.forced.gather(1, beyond)
        return torch.where(forced == FREE, drafts, forced)


def above(grids: Sequence[tuple[int, int]], total: int, rows: int) -> torch.Tensor:
    """(total, R - 1) int64: with tokens up to position i at hand, where the drafts of i + 1 to i + R - 1 come from.

    It is the nearest token above that is at hand; where none is, the preview's token of that place, or else token i.
    """
    up = torch.ones(total + rows, dtype=torch.long)  # tokens from one to the one above it
    base = torch.zeros_like(up)  # the first token of the grid
    instead = torch.full_like(up, -1)
    start = 0
    for n, (h, w) in enumerate(grids):
        span = slice(start, min(start + h * w, total))
        up[span], base[span] = w, start
        if n:  # the full grid after a preview
            instead[span] = enlarged(grids[0], (h, w))[: span.stop - start]
        start += h * w
    last = torch.arange(total)[:, None]
    wanted = last + torch.arange(1, rows)
    found = wanted - up[wanted] * -(-(wanted - last) // up[wanted])
    fallback = torch.where(instead[wanted] >= 0, instead[wanted], last)
    return torch.where(found >= base[wanted], found, fallback).clamp_(min=0)


def enlarged(preview: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """(h*w,) index of the preview's token that covers the middle of each token of a grid."""
    rows, columns = (((torch.arange(n) + 0.5) * small / n).long() for n, small in zip(grid, preview))
    return (rows[:, None] * preview[1] + columns).flatten()


class WindowNoise:
    """Keeps the noise of a `WindowStep` ahead of it; all of it at once would delay the first pass."""

    def __init__(self, step: WindowStep, seeds: Sequence[int]):
        self.step, self.noise, self.sent = step, Noise(seeds, step.codebook), 0

    def until(self, position: int) -> None:
        """Send the noise of all positions before this one."""
        while self.step.noise is not None and self.sent < min(position, self.step.planned):
            stop = min(self.sent + NOISE_ROWS, self.step.planned)
            block = self.noise.block(stop - self.sent).transpose(0, 1)
            self.step.noise[:, self.sent : stop].copy_(sendable(block, self.step.device), non_blocking=True)
            self.sent = stop


def noise_nbytes(config: VisionLanguageConfig, batch: int, planned: int, rows: int, sampling: GenerationConfig) -> int:
    """Bytes of the noise that a step keeps on its device."""
    if sampling.temperature == 0:
        return 0
    return batch * (planned + ROOM * rows) * config.vq_config.num_embeddings * torch.float32.itemsize


@torch.no_grad()
def shifting_rows(step: WindowStep, prefix: Prefix) -> str | None:
    """Why a row's logits depend on where it stands in a window on this device; None if they do not, bit for bit.

    Runs the rows of one window again in windows that begin later, and with other drafts behind them.
    """
    step.start(prefix)
    rows, read = step.rows, step.cache.capacity
    generator = torch.Generator().manual_seed(0)
    shape = (step.batch, step.tokens.shape[1])
    tokens, others = (torch.randint(step.codebook, shape, generator=generator).to(step.device) for _ in range(2))
    at = step.ahead.expand(step.batch, -1)

    def logits(shift: int, right: int) -> torch.Tensor:
        """Of a window that begins `shift` tokens later, whose first `right` rows hold what the whole one holds."""
        ids = torch.cat((tokens[:, shift : shift + right], others[:, : rows - right]), dim=1)
        return step.logits(ids, at + shift, read).cpu()

    whole = logits(0, rows)
    if not torch.equal(logits(0, rows // 2)[:, : rows // 2], whole[:, : rows // 2]):
        return "a row's logits change with the drafts behind it"
    for shift in {1, rows // 2, rows - 1}:
        if not torch.equal(logits(shift, rows - shift)[:, : rows - shift], whole[:, shift:]):
            return f"a row's logits change when its window begins {shift} tokens later"
    return None
