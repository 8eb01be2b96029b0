"""Time each stage against what the device can do at most, measured in the same run.

A stage's share of the ceiling is the time that the slower of its arithmetic (at the rate of a square matrix product)
and its reading of weights (at the rate of a copy) would take, relative to its own time. `peer` times transformers and
diffusers on the same weights, call by call in turn with ours. `growth` measures how cost grows, `tradeoffs` what
inexact options gain and lose.
"""

import gc
import math
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import torch

from ..devices.capabilities import resolve_dtype
from ..devices.device import resolve_device
from ..devices.memory import empty_cache
from ..devices.remembered import name_of
from ..errors import InputError
from ..geometry import check_size, preview_grid, token_grid
from ..glm_image import GlmImage
from ..loading.checkpoint import COMPONENTS, DECODER, PLANNER, title
from ..loading.placement import Placement
from ..models.weight_forms import FORMS
from ..planning.rows import check_rows
from . import peers
from .case import SAMPLINGS, STEPS, Bench, Case
from .models import CONFIGURATIONS, RandomModels
from .result import Result
from .stages import GROWING, STAGES, distinct, growth_cases
from .timing import Ceilings, interleave, peak_bytes, reset_peak, time_call

SIZES = ((512, 512), (1024, 1024))  # height, width in pixels, unless the user says
WHOLE = ("planner prefill", "planner decode", "glyph encoder", "decoder prepare", "decoder guided", "vae decode")


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, refused before a model is made where it means nothing.

    `model` is a checkpoint (None: the bundled one), `config` random weights of a configuration instead; `sizes` are
    (height, width) pixels. `stages` are beginnings of names; `limit` is in seconds.
    """

    model: str | None = None
    config: str | None = None
    device: str | None = None
    dtype: str | None = None
    planner_weights: str = "full"
    decoder_weights: str = "full"
    compile: bool = False
    threads: int | None = None
    growth: bool = False
    tradeoffs: bool = False
    sizes: tuple[tuple[int, int], ...] | None = None
    batches: tuple[int, ...] | None = None
    steps: int | None = None
    stages: tuple[str, ...] = ("",)
    prompt_tokens: int = 128
    tokens: int | None = None
    repeats: int = 5
    limit: float = 60
    peer: bool = False
    plans: int | None = None
    plan_rows: tuple[int, ...] | None = None
    samplings: tuple[str, ...] | None = None
    before: str | None = None

    def __post_init__(self):
        for height, width in self.sizes or ():
            check_size(height, width)
        for name in ("prompt_tokens", "repeats", "threads", "steps", "plans"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value} is not accepted; use 1 or more")
        if self.tokens is not None and self.tokens < 2:
            raise InputError(
                f"--tokens {self.tokens} is not accepted; use 2 or more, since the first comes with the prompt"
            )
        if not self.work():
            there = GROWING if self.growth else STAGES
            raise InputError(f"no stage begins with {','.join(self.stages)!r}; there are {', '.join(there)}")
        if self.peer:
            peers.require()
        if self.peer and self.forms:
            raise InputError("a peer shares our weights, which would be rounded; leave --peer or the form away")
        self._check_mode()

    @property
    def forms(self) -> dict[str, str]:
        """Component -> form, for those that are rounded."""
        words = {PLANNER: self.planner_weights, DECODER: self.decoder_weights}
        return {name: word for name, word in words.items() if word in FORMS}

    def _check_mode(self) -> None:
        """Refuse arguments that what is asked for does not read."""
        if self.steps and not self.tradeoffs:
            raise InputError("--steps goes with --tradeoffs only, which generates whole images")
        alone = [f"--{name.replace('_', '-')}" for name in ("plan_rows", "samplings", "before") if getattr(self, name)]
        if alone and not self.plans:
            raise InputError(f"{', '.join(alone)} goes with --plans only, which makes whole plans")
        unknown = [name for name in self.samplings or () if name not in SAMPLINGS]
        if unknown:
            raise InputError(f"sampling {unknown[0]!r} is not known; use {', '.join(SAMPLINGS)}")
        for rows in self.plan_rows or ():
            check_rows(rows)
        if self.plans and self.peer and set(self.batches or ()) - {1}:
            raise InputError("--plans --peer plans one image at a time; leave --batches or --peer away")
        modes = {
            "plans": (bool(self.plans), ("stages",), "it makes whole plans and nothing else"),
            "growth": (self.growth, ("batches", "tokens"), "it has tokens and batches of its own"),
            "tradeoffs": (
                self.tradeoffs,
                ("config", "peer", "batches", "tokens", "stages"),
                "it generates whole images of a checkpoint, one by one, with our own code",
            ),
        }
        for mode, (asked, unread, reason) in modes.items():
            given = [f"--{name}" for name in unread if getattr(self, name) not in (None, False, ("",))]
            if asked and given:
                raise InputError(f"--{mode} does not go with {', '.join(given)}: {reason}")

    def work(self) -> list[tuple[str, Case]]:
        """Every chosen stage with every case that makes a difference to it."""
        names = [name for name in STAGES if name.startswith(self.stages)]
        if self.growth:
            return [(name, case) for name, case in growth_cases(self.prompt_tokens, self.sizes) if name in names]
        cases = [
            Case(height, width, batch, self.prompt_tokens, self.tokens)
            for height, width in self.sizes or SIZES
            for batch in self.batches or (1,)
        ]
        return [(name, case) for name in names for case in distinct(name, cases)]


def open_bench(request: BenchRequest) -> tuple[Bench, str]:
    """The models to measure, and what they are."""
    where = resolve_device(request.device)
    if request.config:
        dtypes = {name: resolve_dtype(request.dtype, where, name) for name in COMPONENTS}
        models = RandomModels(CONFIGURATIONS[request.config], where, dtypes, request.forms, request.compile)
        name = f"{request.config} configuration, random weights"
        return Bench(models, where, dtypes, request.forms), name + _how(request)
    placement = replace(Placement.on(where, request.dtype), forms=request.forms)
    model = GlmImage.from_pretrained(request.model or "small", placement=placement, compile=request.compile)
    name = "bundled small checkpoint" if request.model in (None, "small") else request.model
    return Bench(model, where, placement.dtypes, request.forms), name + _how(request)


def _how(request: BenchRequest) -> str:
    rounded = [f", {title(name)} in {form}" for name, form in request.forms.items()]
    return "".join([*rounded, ", decoder compiled" if request.compile else ""])


def measure(
    bench: Bench, ceilings: Ceilings, work: Iterable[tuple[str, Case]], request: BenchRequest
) -> Iterator[Result]:
    """Each stage on its case, in order; a component is freed after its last stage."""
    component = None
    for name, case in work:
        if STAGES[name].component != component:
            bench.release()
            component = STAGES[name].component
        yield measure_stage(bench, ceilings, name, case, request)
        gc.collect()
        empty_cache(bench.device)
    bench.release()


@torch.no_grad()
def measure_stage(bench: Bench, ceilings: Ceilings, name: str, case: Case, request: BenchRequest) -> Result:
    """Warm up, note the peak of memory, then time ours (and the peer) in turn."""
    stage = STAGES[name].make(bench, case)
    ours = stage.call()
    reset_peak(bench.device)
    time_call(ours, bench.device)
    peak = peak_bytes(bench.device)
    calls = [ours]
    if request.peer and stage.peer is not None:
        calls.append(stage.peer())
        time_call(calls[-1], bench.device)
    samples = interleave(calls, bench.device, request.repeats, request.limit)
    seconds = samples[0].median
    result = Result(
        stage=name,
        size=case.size if STAGES[name].by_size else None,
        batch=case.batch,
        amount=stage.amount,
        unit=stage.unit,
        seconds=seconds,
        fastest=samples[0].fastest,
        spread=samples[0].spread,
        calls=len(samples[0].seconds),
        share=ceilings.seconds(stage.flops, stage.nbytes) / seconds,
        bound=ceilings.bound(stage.flops, stage.nbytes),
        peak=peak,
    )
    if len(samples) == 1:
        return result
    peer = samples[1]
    return replace(result, peer_seconds=peer.median, peer_fastest=peer.fastest, peer_spread=peer.spread)


def compose(results: list[Result]) -> Iterator[dict]:
    """Seconds of a whole image for each size and batch all of whose stages were measured.

    Added up from the stages, not run: the prompt, the plan (scaled to all its tokens), `STEPS` guided steps, pixels.
    """
    found = {(r.stage, r.size, r.batch): r for r in results}
    for size, batch in dict.fromkeys((r.size, r.batch) for r in results if r.stage == "decoder guided"):
        parts = [_part(found, name, size, batch) for name in WHOLE]
        if None in parts:
            continue
        width, height = map(int, size.split("x"))
        grid = token_grid(height, width)
        planned = batch * (sum(math.prod(g) for g in (grid, preview_grid(*grid))) - 1)
        counts = {"planner decode": planned / parts[1].amount, "decoder guided": STEPS}
        total = {"size": size, "batch": batch, "steps": STEPS}
        total["seconds"] = sum(part.seconds * counts.get(part.stage, 1) for part in parts)
        total["plan_seconds"] = parts[1].seconds * counts["planner decode"]
        total["denoise_seconds"] = parts[4].seconds * STEPS
        yield total


def _part(found: dict, name: str, size: str, batch: int) -> Result | None:
    entry = STAGES[name]
    return found.get((name, size if entry.by_size else None, batch if entry.by_batch else 1))


def about(request: BenchRequest, bench: Bench, name: str) -> dict:
    """What the figures belong to."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "model": name,
        "device": device_name(bench.device),
        "dtype": str(bench.dtypes[DECODER]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peers": peers.versions() if request.peer else {},
        "prompt_tokens": request.prompt_tokens,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def device_name(where: torch.device) -> str:
    if where.type == "cpu":
        return f"{_processor()}, {os.cpu_count()} cores"
    return name_of(where)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except FileNotFoundError:
        return platform.processor() or platform.machine()
