"""The prompt once through the planner: what every plan of it starts from.

Shapes: B prompts, L prompt tokens, V codebook size.
"""

from dataclasses import dataclass

import torch

from ..models.kv_cache import KVCache
from ..models.planner import PREFILL_CHUNK, Planner
from ..progress import Progress
from .prompt import PromptBatch


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
    embedded, cos_sin = planner.embed(batch.ids, device), planner.rope_tables(batch.positions.to(device))
    for start in range(0, length, PREFILL_CHUNK):
        stop = min(start + PREFILL_CHUNK, length)
        mask = prompt_mask(batch.mask, start, stop).to(device)
        tables = tuple(table[:, :, start:stop] for table in cos_sin)
        logits = planner(embedded[:, start:stop], tables, mask, cache, start, stop)
        if progress:
            progress(stop, length, grid="prompt")
    return Prefix(batch, cache, logits[:, : planner.config.vq_config.num_embeddings])


def prompt_mask(present: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """(B, L) bool, False on padding -> (B, 1, stop - start, stop) of which keys each query in start..stop sees.

    Padding sees itself: a row of no keys at all is NaN in some attention kernels.
    """
    queries, keys = torch.arange(start, stop)[:, None], torch.arange(stop)
    return ((keys <= queries) & present[:, None, None, :stop]) | (keys == queries)
