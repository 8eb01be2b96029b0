"""How many rows a pass of the planner has: the last known token and drafts of the next ones.

In float32 the tokens are the same for any number, so on a CPU, where more rows cost more time, passes are timed and the
number is chosen from pass to pass. In half precision the number is part of what defines a plan, so a table decides and
never a clock: the same seed has to give the same image tomorrow.
"""

from collections import deque

import torch

from ..devices.capabilities import multiplies_bfloat16
from ..errors import InputError
from ..plan import MAX_PLAN_ROWS

WIDEST = 16  # rows of one plan on an accelerator: a tile of its matrix units
TOGETHER = 64  # rows of all plans of a pass on an accelerator, up to which reading weights takes most of the time
CPU_WIDEST, CPU_TOGETHER = 8, 16  # the same in bfloat16 on a CPU that multiplies it
CANDIDATES = (16, 8, 4, 1)
TRIALS = {16: 4, 8: 3, 4: 3, 1: 2}  # passes that are timed before one number is preferred
KEPT = 4  # times of each number; of more, the fastest would favour what was run most
SURE = 1.1  # times the tokens a second of single tokens, below which times scatter too much
AGAIN = 16  # passes after which the widest is tried again, for another part of an image may draft better


def check_rows(rows: int | None) -> None:
    """Refuse numbers that no pass has; None leaves the choice to `default_rows`."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= MAX_PLAN_ROWS):
        raise InputError(
            f"plan_rows {rows!r} is not accepted; use 1 (one token a pass) to {MAX_PLAN_ROWS}, or leave it out"
        )


def default_rows(device: torch.device, dtype: torch.dtype, batch: int) -> int:
    """Rows of a pass for each of `batch` plans, most that a pass may have where the number is chosen as it goes."""
    if device.type != "cpu":
        return max(1, min(WIDEST, TOGETHER // batch))
    if dtype == torch.float32:
        return WIDEST
    multiplies = dtype == torch.bfloat16 and multiplies_bfloat16()
    return max(1, min(CPU_WIDEST, CPU_TOGETHER // batch)) if multiplies else 1


class MeasuredRows:
    """The number of rows that plans fastest, from what passes took and gained so far."""

    def __init__(self, most: int = WIDEST):
        self.candidates = [rows for rows in CANDIDATES if rows <= most]
        self.trials = [rows for rows in self.candidates for _ in range(TRIALS[rows])]
        self.seconds = {rows: deque(maxlen=KEPT) for rows in self.candidates}  # of the last passes
        self.gained = dict.fromkeys(self.candidates, 0.0)  # tokens of a plan, in passes of that many rows or more
        self.passes = dict.fromkeys(self.candidates, 0)
        self.since = 0

    def next(self) -> int:
        """Rows of the next pass."""
        if self.trials:
            return self.trials[0]
        self.since = (self.since + 1) % AGAIN
        return self.candidates[0] if self.since == 0 else self.best()

    def best(self) -> int:
        """Rows of the most tokens a second; 1 where more do not gain enough to be sure of."""
        rates = {rows: self.gained[rows] / self.passes[rows] / min(self.seconds[rows]) for rows in self.candidates}
        best = max(rates, key=rates.get)
        return best if rates[best] > SURE * rates[1] else 1

    def note(self, rows: int, seconds: float, gains: list[int]) -> None:
        """What a pass took, and what each plan that was not complete gained by it.

        A pass of fewer rows would have gained as much, up to their number.
        """
        self.seconds[rows].append(seconds)
        for fewer in (each for each in self.candidates if each <= rows):
            self.gained[fewer] += sum(min(gain, fewer) for gain in gains) / max(1, len(gains))
            self.passes[fewer] += 1
        if self.trials[:1] == [rows]:
            self.trials.pop(0)
