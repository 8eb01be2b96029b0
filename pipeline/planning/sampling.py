"""Choosing tokens: temperature, top-k, top-p, and noise that depends on the seed alone.

Noise is made on the CPU, by a generator of its own for every image, and added to the scores (Gumbel-max): image k of
a batch depends on its own seed only, devices agree up to rounding, and nothing is read back to choose a token.
Shapes: B images, V codebook size, n tokens to choose.
"""

import math
from collections.abc import Sequence

import torch

from ..errors import InputError
from ..models.config import GenerationConfig

MOST_DROPPED = 1 - 3e-5  # of all probability; the best of 16384 ids has at least twice what is left, so it stays
TINY = 1e-10  # float32 uniforms can be exactly 0, whose Gumbel noise would be -inf
TRIES = 8  # ids of a row that are looked at together, where the codebook is small
LOOKED_AT = 1 << 17  # numbers that are compared at once, which should stay in a core's cache


def check_sampling(sampling: GenerationConfig) -> None:
    """Refuse values that no distribution has."""
    check_temperature(sampling.temperature)
    check_top_p(sampling.top_p)
    if sampling.top_k < 0:
        raise InputError(f"top_k {sampling.top_k} is not accepted; use 0 (off) or more")


def check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature {temperature} is not accepted; use 0 (greedy) or more, such as 0.9")


def check_top_p(top_p: float) -> None:
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} is not accepted; use more than 0 and at most 1, such as 0.75")


def choose(logits: torch.Tensor, noise: torch.Tensor | None, sampling: GenerationConfig) -> torch.Tensor:
    """(..., n or 1, V) float32 logits with the noise (..., n, V) of n positions -> (..., n) ids; None is greedy."""
    if noise is None:
        return logits.argmax(dim=-1)
    if logits.device.type == "cpu" and sampling.top_p < 1 and not sampling.top_k:
        rows = logits.expand_as(noise).reshape(-1, noise.shape[-1])
        return choose_in_nucleus(rows, noise.reshape(rows.shape), sampling).view(noise.shape[:-1])
    return (warp(logits.flatten(0, -2), sampling).view(logits.shape) + noise).argmax(dim=-1)


def warp(logits: torch.Tensor, sampling: GenerationConfig) -> torch.Tensor:
    """(B, V) float32 logits -> scores whose softmax is the distribution to sample from, -inf for what is never sampled.

    transformers' order: temperature, top_k (0 keeps all), top_p. Equal scores leave in the order of their ids, so
    that devices agree.
    """
    scores = _tempered(logits, sampling)
    if 0 < sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -math.inf)
    if sampling.top_p < 1:
        ascending, order = scores.sort(dim=-1, stable=True)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= _dropped(sampling)
        scores = torch.empty_like(scores).scatter_(1, order, ascending.masked_fill_(dropped, -math.inf))
    return scores


def _tempered(logits: torch.Tensor, sampling: GenerationConfig) -> torch.Tensor:
    return logits / sampling.temperature if sampling.temperature != 1 else logits


def _dropped(sampling: GenerationConfig) -> float:
    """Probability that top_p leaves out."""
    return min(1 - sampling.top_p, MOST_DROPPED)


def choose_in_nucleus(logits: torch.Tensor, noise: torch.Tensor, sampling: GenerationConfig) -> torch.Tensor:
    """(n, V) logits and noise -> (n,) what `warp` and argmax choose, without the sort that takes most of their time.

    It is the best perturbed id that top_p keeps, and top_p keeps an id if those that a stable ascending sort puts up
    to it have more than the probability to drop. The first try is right with probability top_p or more.
    """
    scores, dropped = _tempered(logits, sampling), _dropped(sampling)
    p, perturbed = scores.softmax(dim=-1), scores + noise
    best = perturbed.argmax(dim=-1, keepdim=True)
    least = p.gather(1, best)
    below = torch.where(p < least, p, 0.0).sum(dim=-1, keepdim=True)
    doubtful = (below + least <= dropped).nonzero()[:, 0]  # without ties of smaller id
    if len(doubtful):
        best[doubtful] = _search(p[doubtful], perturbed[doubtful], dropped)
    return best.squeeze(1)


def _search(p: torch.Tensor, perturbed: torch.Tensor, dropped: float) -> torch.Tensor:
    """(n, V) probabilities and perturbed scores -> (n, 1) the best id that is kept, a few ids of a row at a time."""
    chosen, left = torch.empty(len(p), 1, dtype=torch.long), torch.arange(len(p))
    ids = torch.arange(p.shape[-1])
    while len(left):
        best = perturbed.topk(max(1, min(TRIES, p.shape[-1], LOOKED_AT // p.numel())), dim=-1).indices
        least, row = p.gather(1, best)[..., None], p[:, None]
        upto = torch.where((row < least) | ((row == least) & (ids <= best[..., None])), row, 0.0).sum(dim=-1)
        kept = upto > dropped
        chosen[left] = best.gather(1, kept.int().argmax(dim=1, keepdim=True))
        again = (~kept.any(dim=1)).nonzero()[:, 0]
        perturbed = perturbed.scatter(1, best, -math.inf)[again]
        p, left = p[again], left[again]
    return chosen


class Noise:
    """Gumbel noise for one image after another token, the same whatever the block size or the batch."""

    def __init__(self, seeds: Sequence[int], codebook: int):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.codebook = codebook

    def block(self, rows: int) -> torch.Tensor:
        """The next (rows, B, V) on the CPU."""
        uniform = [torch.rand(rows, self.codebook, generator=generator) for generator in self.generators]
        return torch.stack(uniform, dim=1).clamp_(min=TINY).log_().neg_().log_().neg_()
