"""Whole plans by several tokens a pass: passes, time, and whether they are those of one token a pass.

`before` is another checkout of this package, whose planner runs on the same weights call by call in turn with ours.
Shapes: R rows of a pass.
"""

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..devices.device import synchronize
from ..errors import InputError
from ..geometry import preview_grid, token_grid
from ..loading.checkpoint import BUNDLED, PLANNER
from ..models.kv_cache import cache_nbytes
from ..planning.generate import decode
from ..planning.graphs import GraphRunner
from ..planning.prefill import Prefix, prefill
from ..planning.prompt import collate
from ..planning.steps import fits, new_step
from . import peers
from .case import SAMPLINGS, Bench, Case
from .models import weight_bytes
from .planner_stages import first_tokens, prompt_batch
from .timing import Ceilings

HOMES = {  # where a checkout has what is needed, the latest place first
    "Planner": ("pipeline.models.planner", "pipeline.planner"),
    "prefill": ("pipeline.planning.prefill", "pipeline.generate"),
    "decode": ("pipeline.planning.generate", "pipeline.generate"),
}


@dataclass(frozen=True)
class PlansResult:
    """Plans of one sampling and number of rows (None: as chosen for the device).

    `seconds` and `passes` are of all `plans` together, `tokens` those of each image; `equal` counts plans equal to
    those of one token a pass, in half precision of as many rows. `before` and `peer` are seconds of the same plans.
    `share` is the time that reading weights and keys once takes at the rate of a copy, relative to a pass.
    """

    sampling: str
    rows: int | None
    batch: int
    plans: int
    tokens: int
    passes: int
    equal: int
    seconds: float
    single: float
    share: float
    before: float | None
    peer: float | None

    @property
    def tokens_a_pass(self) -> float:
        return self.plans * (self.tokens - 1) / self.passes

    def as_json(self) -> dict:
        return asdict(self) | {"tokens_a_pass": self.tokens_a_pass}


class Before:
    """Another checkout of this package, imported under another name."""

    def __init__(self, folder: Path):
        if not (folder / "__init__.py").is_file():
            raise InputError(f"--before {folder} is not a checkout of this package; give the folder of its __init__.py")
        spec = importlib.util.spec_from_file_location(
            "build_before", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        self.Planner, self.prefill, self.decode = (_found(folder, spec.name, name) for name in HOMES)

    def planner(self, ours: torch.nn.Module) -> torch.nn.Module:
        """Its planner with our tensors."""
        with torch.device("meta"):
            planner = self.Planner(ours.config)
        planner.load_state_dict(ours.state_dict(), assign=True)
        planner.requires_grad_(False).fuse()
        return planner


def _found(folder: Path, package: str, name: str):
    for home in HOMES[name]:
        if folder.joinpath(*home.split(".")).with_suffix(".py").is_file():
            return getattr(importlib.import_module(f"{package}.{home}"), name)
    raise InputError(f"the build before has no {name} where this benchmark looks for it: {', '.join(HOMES[name])}")


def measure(bench: Bench, ceilings: Ceilings, request) -> Iterator[PlansResult]:
    """Every sampling with every number of rows, `request.plans` plans each."""
    before = Before(Path(request.before)) if request.before else None
    for batch in request.batches or (1,):
        for sampling in request.samplings or SAMPLINGS:
            for rows in request.plan_rows or (None,):
                yield _Plans(bench, sampling, rows, batch, request, before).run(ceilings)


class _Plans:
    """Plans of one sampling, number of rows and batch."""

    def __init__(self, bench: Bench, sampling: str, rows: int | None, batch: int, request, before: Before | None):
        self.bench, self.name, self.rows, self.batch, self.request = bench, sampling, rows, batch, request
        self.sampling, self.device = SAMPLINGS[sampling], bench.device
        self.planner = bench.models.planner
        self.before, self.old = before, before and before.planner(self.planner)
        self.graphs, self.steps = GraphRunner(self.planner, self.device), {}
        self.clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self.passes = 0

    def run(self, ceilings: Ceilings) -> PlansResult:
        seconds = {"ours": 0.0, "single": 0.0, "before": 0.0, "peer": 0.0}
        equal, plans, nbytes = 0, 0, 0
        for k, batch in enumerate(self._prompts()):
            prefix = prefill(self.planner, batch, self.device)
            seeds = [k * self.batch + i for i in range(self.batch)]
            calls = self._calls(prefix, batch, seeds)
            if k == 0:  # warms up, and lets a CPU measure its rows
                for call in calls.values():
                    call()
            self.passes, made = (0 if k == 0 else self.passes), {}
            for name, call in calls.items():
                taken, made[name] = self._time(call)
                seconds[name] += taken
            equal += int((made["ours"] == self._one_by_one(prefix, seeds, made["single"])).all(dim=1).sum())
            plans += self.batch
            nbytes = self._read_bytes(prefix)
        passes = self.passes
        return PlansResult(
            sampling=self.name,
            rows=self.rows,
            batch=self.batch,
            plans=plans,
            tokens=made["ours"].shape[1],
            passes=passes * self.batch,
            equal=equal,
            seconds=seconds["ours"],
            single=seconds["single"],
            share=nbytes / ceilings.copy / (seconds["ours"] / passes),
            before=seconds["before"] or None,
            peer=seconds["peer"] or None,
        )

    def _calls(self, prefix: Prefix, batch, seeds: list[int]) -> dict[str, Callable]:
        calls = {
            "single": lambda: self._plan(prefix, seeds, 1),
            "ours": lambda: self._plan(prefix, seeds, self.rows, count=True),
        }
        if self.before:
            old = self.before.prefill(self.old, batch, self.device)
            calls["before"] = lambda: joined(self.before.decode(self.old, old, self.sampling, seeds))
        if self.request.peer:
            model, inputs = self.bench.peer(PLANNER), peers.prompt_inputs(batch, self.device)
            total = batch.decode_positions.shape[2]
            calls["peer"] = lambda: peers.generate(model, inputs, total, self.sampling, self.clock)
        return calls

    def _plan(self, prefix: Prefix, seeds: list[int], rows: int | None, count: bool = False, keep: int | None = None):
        """(B, N) tokens; `keep` of each pass at most."""
        key = rows, keep is None
        if key not in self.steps or not fits(self.steps[key], prefix, self.sampling, len(seeds), rows):
            self.steps[key] = new_step(self.planner, prefix, self.sampling, len(seeds), rows)

        def run(step, k: int) -> None:
            self.passes += count
            known = step.known.clone() if keep else None
            self.graphs(step, k)
            if keep:
                step.known.copy_(torch.minimum(known + keep, step.complete))

        step = self.steps[key]
        return joined(decode(self.planner, prefix, self.sampling, seeds, rows=rows, step=step, run=run))

    def _one_by_one(self, prefix: Prefix, seeds: list[int], single: torch.Tensor) -> torch.Tensor:
        """What the plan must equal: single tokens, which in half precision go through passes of as many rows."""
        step = self.steps[self.rows, True]
        if step.rows == 1 or step.free:
            return single
        return self._plan(prefix, seeds, self.rows, keep=1)

    def _time(self, call: Callable) -> tuple[float, object]:
        """Seconds of a call and what it gave. On a CPU those that it computed, since other programs share it.

        A peer takes its own time, from the first token on.
        """
        synchronize(self.device)
        start = self.clock()
        made = call()
        synchronize(self.device)
        return (made if isinstance(made, float) else self.clock() - start), made

    def _read_bytes(self, prefix: Prefix) -> int:
        """Bytes that a pass must read: weights, and keys of half the plan."""
        meta, planned = self.bench.meta.planner, prefix.batch.decode_positions.shape[2]
        config, dtype = self.planner.config.text_config, self.bench.dtypes[PLANNER]
        weights = weight_bytes(meta.model.language_model.layers, meta.lm_head)
        return weights + cache_nbytes(config, self.batch, prefix.length + planned // 2, dtype)

    def _prompts(self) -> Iterator:
        """Prompt batches of one prompt: the bundled benchmark's in turn, or random text."""
        config, wanted = self.bench.models.configs[PLANNER], self.request.plans
        if self.request.config or self.request.model not in (None, "small"):
            height, width = (self.request.sizes or ((256, 256),))[0]
            for k in range(wanted):
                case = Case(height, width, 1, self.request.prompt_tokens)
                yield first_tokens(prompt_batch(config, case, k), self.request.tokens)
            return
        texts = small_prompts()
        for k in range(wanted):
            text = texts[k * len(texts) // wanted if wanted < len(texts) else k % len(texts)]
            grid = token_grid(text["height"], text["width"])
            preview = preview_grid(*grid)
            encoded = self.bench.models.settings.prompts.encode(text["prompt"], grid, preview)
            yield collate([encoded], grid, preview, config)


def small_prompts() -> list[dict]:
    """Prompts and sizes of the bundled benchmark, ten of each number of texts."""
    files = [BUNDLED / "benchmark" / f"{n}.json" for n in (1, 2, 3, 4)]
    return [text for file in files for text in json.loads(file.read_text(encoding="utf-8"))["data_list"][:10]]


def joined(grids: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, N) of a plan's grids."""
    return torch.cat(list(grids.values()), dim=1)


def header(before: bool, peer: bool) -> str:
    columns = f"{'sampling':9} {'rows':>4} {'batch':>5} {'plans':>5} {'equal':>5} {'tokens/pass':>11} {'passes':>7}"
    columns += f" {'time/plan':>10} {'bandwidth/pass':>14} {'over R=1':>8}"
    return columns + (f" {'before':>7}" if before else "") + (f" {'peer':>7}" if peer else "")


def row(result: PlansResult) -> str:
    """Times are relative to ours: above 1 is faster than theirs."""
    passes, milliseconds = result.passes / result.plans, result.seconds / result.plans * 1e3
    line = (
        f"{result.sampling:9} {result.rows or 'auto':>4} {result.batch:5} {result.plans:5} {result.equal:5} "
        f"{result.tokens_a_pass:11.2f} {passes:7.1f} {milliseconds:7.1f} ms "
        f"{result.share:14.0%} {result.single / result.seconds:7.2f}x"
    )
    for other in (result.before, result.peer):
        line += "" if other is None else f" {other / result.seconds:6.2f}x"
    return line
