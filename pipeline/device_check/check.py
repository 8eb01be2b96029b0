"""Run every stage on a device; one that fails is reported, and the others go on."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ..benchmark.case import Bench, Case
from ..benchmark.models import CONFIGURATIONS
from ..benchmark.result import Result
from ..benchmark.run import BenchRequest, about, measure_stage, open_bench
from ..benchmark.timing import Ceilings
from ..devices.device import current, resolve_device
from ..devices.memory import empty_cache, memory_of
from ..devices.npu_pairs import version_of
from ..errors import InputError
from ..geometry import check_size
from ..loading.placement import gib
from .results import DeviceReport, Figure, StageReport, collect

ROOM_FOR_RELEASE = 24 << 30  # bytes of a device that holds the release's planner


@dataclass(frozen=True)
class DeviceCheckRequest:
    """What to check. Without `model`, random weights of a configuration: "auto" is the release's where it fits.

    `tokens` are those of a plan that is timed, `limit` seconds after which a call is not repeated.
    """

    device: str | None = None
    model: str | None = None
    config: str = "auto"
    dtype: str | None = None
    height: int = 1024
    width: int = 1024
    steps: int = 50
    tokens: int = 128
    repeats: int = 3
    limit: float = 15
    peer: bool = False

    def __post_init__(self):
        check_size(self.height, self.width)
        if self.config not in ("auto", *CONFIGURATIONS):
            raise InputError(f"--config {self.config!r} is not known; use auto, {', '.join(CONFIGURATIONS)}")
        for name, least in (("steps", 1), ("tokens", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)} is not accepted; use {least} or more")

    def bench_request(self, planner_weights: str = "full") -> BenchRequest:
        device = resolve_device(self.device)
        config = None if self.model else self.config
        if config == "auto":
            fits = device.type != "cpu" and memory_of(device).total >= ROOM_FOR_RELEASE
            config = "release" if fits else "third"
        return BenchRequest(
            model=self.model,
            config=config,
            device=str(device),
            dtype=self.dtype,
            planner_weights=planner_weights,
            sizes=((self.height, self.width),),
            tokens=self.tokens,
            repeats=self.repeats,
            limit=self.limit,
            peer=self.peer and planner_weights == "full",
        )


class DeviceCheck:
    """What stages share: the models, the device's limits, and the choice of guidance that was measured."""

    def __init__(self, request: DeviceCheckRequest):
        self.request = request
        self.bench, self.name = open_bench(request.bench_request())
        self.ceilings: Ceilings | None = None
        self.batched_guidance = False

    @property
    def device(self) -> torch.device:
        return self.bench.device

    def case(self, batch: int = 1) -> Case:
        return Case(self.request.height, self.request.width, batch, tokens=self.request.tokens)

    def measure(self, stage: str, batch: int = 1, bench: Bench | None = None, rows: int | None = None) -> Result:
        """A stage of the benchmark, against the limits if they were measured."""
        request = self.request.bench_request("full" if bench is None else "w8")
        ceilings = self.ceilings or Ceilings(float("inf"), float("inf"))
        return measure_stage(bench or self.bench, ceilings, stage, replace(self.case(batch), rows=rows), request)

    def about(self) -> dict[str, str]:
        """What the figures belong to."""
        facts = about(self.request.bench_request(), self.bench, self.name)
        kept = ("date", "model", "device", "dtype", "torch", "python")
        more = {name: version_of(name) for name in ("torch_npu", "transformers", "diffusers") if version_of(name)}
        memory = memory_of(self.device)
        size = f"{self.request.width}x{self.request.height} px, {self.request.steps} steps"
        held = {"memory": f"{gib(memory.free)} free of {gib(memory.total)}", "size": size}
        return {name: str(facts[name]) for name in kept} | more | held


Stage = Callable[[DeviceCheck], Iterator[Figure]]


def check_device(
    request: DeviceCheckRequest, stages: dict[str, Stage], on_stage: Callable[[StageReport], None] | None = None
) -> DeviceReport:
    """Every stage in order; `on_stage` gets each one's report when it ends."""
    check, reports = DeviceCheck(request), []
    with current(check.device):
        for name, stage in stages.items():
            reports.append(run_stage(name, stage, check))
            if on_stage:
                on_stage(reports[-1])
    return DeviceReport(check.about(), reports)


def run_stage(name: str, stage: Stage, check: DeviceCheck) -> StageReport:
    """A stage's figures up to its end or its error; its models are freed."""
    report = collect(name, stage(check))
    check.bench.release()
    gc.collect()
    empty_cache(check.device)
    return report


def figure(result: Result, name: str, target: str = "", **more) -> Figure:
    """A benchmark's result as its rate; the peer's ratio goes into the note."""
    share = result.share if 0 < result.share < float("inf") else None
    note = "" if result.peak is None else f"peak {gib(result.peak)}"
    if result.ratio is not None:
        note += f", {result.ratio:.2f} times the peer's rate"
    made = Figure(name, result.rate, f"{result.unit}/s", share, result.bound, target, note)
    return replace(made, **more)
