"""Word accuracy and NED of groups of images, pooled over words, with bootstrap intervals over images.

Follows CVTG-2K, see `ocr.py`.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError
from .read import Reading

RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class GroupScore:
    """Word accuracy and NED of one group, with the bounds of a 95 % bootstrap interval over images."""

    group: str
    images: int
    words: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ned: float
    ned_low: float
    ned_high: float


def score_groups(readings: list[Reading], seed: int = 0) -> list[GroupScore]:
    """Scores of every group, then of all images as "all" if there are several groups."""
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.group, []).append(reading)
    if len(groups) > 1:
        groups["all"] = list(readings)
    return [_group_score(name, members, seed) for name, members in groups.items()]


def _group_score(group: str, readings: list[Reading], seed: int) -> GroupScore:
    words = sum(r.words for r in readings)
    if not words:
        raise InputError(f"group {group} asks for no words at all; are the texts of its prompts quoted?")
    rng = random.Random(seed)
    samples = [_pooled(rng.choices(readings, k=len(readings))) for _ in range(RESAMPLES)]
    accuracy, ned = _pooled(readings)
    low, high = zip(*(interval(values) for values in zip(*samples)))
    return GroupScore(group, len(readings), words, accuracy, low[0], high[0], ned, low[1], high[1])


def _pooled(readings: list[Reading]) -> tuple[float, float]:
    words = max(1, sum(r.words for r in readings))
    return sum(r.correct for r in readings) / words, sum(r.similarity for r in readings) / words


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The bounds between which 95 % of resampled values lie."""
    ordered = sorted(values)
    edge = math.floor(len(ordered) * 0.025)
    return ordered[edge], ordered[-1 - edge]
