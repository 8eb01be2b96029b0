"""Which images a step sees: a function of seed and step alone, so that a run can go on at any of them."""

import random
from collections.abc import Sequence

from .prepared import Item


class Batches:
    """Batches of items of one grid; every epoch has each item once, in an order of its own.

    `batches[k]` is the k-th batch of the run. The last of a grid may be smaller.
    """

    def __init__(self, items: Sequence[Item], size: int, seed: int):
        self.grids: dict[tuple[int, int], list[Item]] = {}
        for item in items:
            self.grids.setdefault(item.grid, []).append(item)
        self.size, self.seed = size, seed
        self.per_epoch = sum(-(-len(members) // size) for members in self.grids.values())
        self._epoch: tuple[int, list[list[Item]]] = (-1, [])

    def __getitem__(self, k: int) -> list[Item]:
        epoch, place = divmod(k, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled(random.Random(f"{self.seed} {epoch}"))
        return self._epoch[1][place]

    def _shuffled(self, rng: random.Random) -> list[list[Item]]:
        batches = []
        for members in self.grids.values():
            order = rng.sample(members, len(members))
            batches += [order[start : start + self.size] for start in range(0, len(order), self.size)]
        rng.shuffle(batches)
        return batches

    @property
    def commonest(self) -> tuple[int, int]:
        """The grid of most items."""
        return max(self.grids, key=lambda grid: len(self.grids[grid]))

    @property
    def largest(self) -> tuple[int, int]:
        """The grid of most tokens."""
        return max(self.grids, key=lambda grid: grid[0] * grid[1])
