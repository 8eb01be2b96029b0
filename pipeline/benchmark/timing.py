"""Seconds, bytes, floating-point operations, and what the device at hand can do at most.

A ceiling is measured, never looked up: copying gives the memory's rate, a square product the arithmetic's.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..devices.device import synchronize

CLEAR = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the process's peak
STATUS = Path("/proc/self/status")
ATTEMPTS = 5
COPIED = {"cpu": 256 << 20}  # bytes, far more than any cache
SIDE = {"cpu": 1536}  # of the square matrices
COPIED_ELSEWHERE, SIDE_ELSEWHERE = 1 << 30, 8192

Call = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """`copy` bytes a second, read plus written; `matrix` floating-point operations a second in the working dtype."""

    copy: float
    matrix: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """What the slower of reading and computing takes at these rates."""
        return max(flops / self.matrix, nbytes / self.copy)

    def bound(self, flops: float, nbytes: float) -> str:
        return "matrix" if flops / self.matrix >= nbytes / self.copy else "memory"


@dataclass(frozen=True)
class Sample:
    """Seconds of several calls."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the middle half's ends relative to the median; 0 for fewer than 3 calls."""
        if len(self.seconds) < 3:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of a few attempts each."""
    return Ceilings(_copy_rate(device), _matrix_rate(device, dtype))


def _copy_rate(device: torch.device) -> float:
    size = COPIED.get(device.type, COPIED_ELSEWHERE)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / best(lambda: target.copy_(source), device)


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE.get(device.type, SIDE_ELSEWHERE)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / best(lambda: torch.mm(a, b, out=out), device)


def best(call: Callable, device: torch.device) -> float:
    """Seconds of the fastest of a few calls, after one that does not count."""

    return min(time_call(call, device) for _ in range(ATTEMPTS + 1))


@torch.no_grad()
def time_call(call: Call, device: torch.device) -> float:
    """Seconds until the device is done; a call that returns a float has taken its own time."""
    synchronize(device)
    start = time.perf_counter()
    made = call()
    synchronize(device)
    return made if isinstance(made, float) else time.perf_counter() - start


def interleave(calls: Sequence[Call], device: torch.device, repeats: int, limit: float) -> list[Sample]:
    """Time the calls in turn, so that what else happens on the machine meets them alike.

    The caller has warmed them up. No further round begins after `limit` seconds.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    gc.disable()  # a collection would fall on one call and not on the other
    try:
        for _ in range(repeats):
            for call, taken in zip(calls, seconds):
                taken.append(time_call(call, device))
            if time.perf_counter() - start > limit:
                break
    finally:
        gc.enable()
    return [Sample(tuple(taken)) for taken in seconds]


def count_flops(call: Callable) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a call, as run on any device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def reset_peak(device: torch.device) -> None:
    if device.type in ("cuda", "npu", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """The most memory since `reset_peak`: tensors on an accelerator, on a CPU the whole process; None if not known."""
    if device.type in ("cuda", "npu", "xpu"):
        return getattr(torch, device.type).max_memory_allocated(device)
    if not (CLEAR.exists() and STATUS.exists()):
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
