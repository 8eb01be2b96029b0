"""Choosing a token: temperature, top-k, top-p, and noise that depends on the seed alone.

Noise is made on the CPU, by a generator of its own for every image, and added to the scores (Gumbel-max): image k of
a batch depends on its own seed only, devices agree up to rounding, and nothing is read back to choose a token.
Shapes: B images, V codebook size.
"""

import math
from collections.abc import Sequence

import torch

from ..errors import InputError
from ..models.config import GenerationConfig

MOST_DROPPED = 1 - 3e-5  # of all probability; the best of 16384 ids has at least twice what is left, so it stays
TINY = 1e-10  # float32 uniforms can be exactly 0, whose Gumbel noise would be -inf


def check_sampling(sampling: GenerationConfig) -> None:
    """Refuse values that no distribution has."""
    if not 0 <= sampling.temperature < math.inf:
        raise InputError(f"temperature {sampling.temperature} is not accepted; use 0 (greedy) or more, such as 0.9")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p {sampling.top_p} is not accepted; use more than 0 and at most 1, such as 0.75")
    if sampling.top_k < 0:
        raise InputError(f"top_k {sampling.top_k} is not accepted; use 0 (off) or more")


def warp(logits: torch.Tensor, sampling: GenerationConfig) -> torch.Tensor:
    """(B, V) float32 logits -> scores whose softmax is the distribution to sample from, -inf for what is never sampled.

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
