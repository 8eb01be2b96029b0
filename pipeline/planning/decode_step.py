"""One token for each image of a batch: a step that runs eagerly, or as a captured graph.

Shapes: B images, N tokens to plan, V codebook size, S cache slots read.
"""

import torch

from ..models.config import GenerationConfig
from ..models.kv_cache import BUCKET, bucket_length
from ..models.planner import Planner
from ..models.planner_cpu import CpuDecode
from .prefill import Prefix
from .sampling import warp

NOISE_ROWS = 32  # tokens whose noise is made and sent at once


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
        self.single: CpuDecode | None = None  # the planner's pass over one token, where there is a faster form
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
        suits = CpuDecode.suits(self.planner, self.tokens.device)
        self.single = CpuDecode(self.planner, self.cache, self.tables) if suits else None
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


def new_step(
    planner: Planner, prefix: Prefix, sampling: GenerationConfig, rows: int, biased: bool = False
) -> DecodeStep:
    """Buffers for plans from this prefix, with room for prompts of similar length."""
    planned = prefix.batch.decode_positions.shape[2]
    capacity = -(-(prefix.length + planned) // BUCKET) * BUCKET
    device = prefix.logits.device
    return DecodeStep(planner, sampling, rows=rows, capacity=capacity, planned=planned, device=device, biased=biased)
