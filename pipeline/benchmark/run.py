"""`glm-image bench`: time each stage against what the device can do at most, measured in the same run.

A stage's share of the ceiling is the time that the slower of its arithmetic (at the rate of a square matrix product)
and its reading of weights (at the rate of a copy) would take, relative to its own time. `--peer` times transformers
and diffusers on the same weights, call by call in turn with ours. `--growth` measures how cost grows, `--tradeoffs`
what inexact options gain and lose. The last line of the output is JSON.
"""

import argparse
import gc
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone

import torch

from ..devices.capabilities import resolve_dtype
from ..devices.device import current, resolve_device
from ..devices.memory import empty_cache
from ..errors import InputError
from ..geometry import check_size, preview_grid, token_grid
from ..glm_image import GlmImage
from ..loading.checkpoint import BUNDLED as SMALL
from ..loading.checkpoint import COMPONENTS, DECODER, PLANNER
from ..loading.placement import Placement
from . import growth as bench_growth
from . import peers as bench_peer
from . import tradeoffs as bench_tradeoffs
from .models import CONFIGURATIONS, RandomModels
from .stages import STAGES, STEPS, Bench, Case
from .timing import Ceilings, interleave, measure_ceilings, peak_bytes, reset_peak, time_call

MIB = 1 << 20
SIZES = ((512, 512), (1024, 1024))  # height, width in pixels, unless the user says
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
WHOLE = ("planner prefill", "planner decode", "glyph encoder", "decoder prepare", "decoder guided", "vae decode")


@dataclass(frozen=True)
class Result:
    """One row: seconds are medians, `spread` the distance of the quartiles relative to it, `peak` bytes.

    `fastest` is the call that other work on the machine disturbed least. `share` is of the ceiling, which is the
    "memory" or the "matrix" rate; `ratio` is the peer's time over ours.
    """

    stage: str
    size: str | None
    batch: int
    amount: int
    unit: str
    seconds: float
    fastest: float
    spread: float
    calls: int
    share: float
    bound: str
    peak: int | None
    peer_seconds: float | None = None
    peer_fastest: float | None = None
    peer_spread: float | None = None

    @property
    def rate(self) -> float:
        return self.amount / self.seconds

    @property
    def ratio(self) -> float | None:
        return self.peer_seconds and self.peer_seconds / self.seconds

    def as_json(self) -> dict:
        return asdict(self) | {"rate": self.rate, "ratio": self.ratio}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--model", metavar="PATH_OR_ID", help="a checkpoint's folder or id; default: small, the bundled one"
    )
    models.add_argument(
        "--config",
        choices=sorted(CONFIGURATIONS),
        help="random weights made on the device: the release's sizes, or about a third (planner of 0.3 billion)",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, npu, ...")
    parser.add_argument("--dtype", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--planner-int8", action="store_true", help="store the planner's matrices in 8 bits")
    parser.add_argument("--compile", action="store_true", help="run the decoder's blocks by torch.compile")
    parser.add_argument("--threads", type=int, help="CPU threads")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--growth", action="store_true", help="only how cost grows with tokens and with pixels")
    what.add_argument(
        "--tradeoffs", action="store_true", help="only the options that trade exactness for speed, on whole pictures"
    )
    parser.add_argument("--sizes", type=_sizes, help="sides or WIDTHxHEIGHT, by commas (default 512,1024)")
    parser.add_argument("--batches", type=_numbers, help="images at once, by commas (default 1)")
    parser.add_argument("--steps", type=int, help=f"steps of a picture of --tradeoffs (default {STEPS})")
    parser.add_argument("--stages", default="", help="only stages whose names begin so, by commas")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, help="plan at most so many tokens; default: the whole plan")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each stage, after one that is not")
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a stage is not repeated")
    parser.add_argument("--peer", action="store_true", help="time transformers and diffusers too (extra: test)")


def _sizes(text: str) -> list[tuple[int, int]]:
    """ "512,768x1024" -> (height, width) pixels each."""
    sizes = []
    for word in text.split(","):
        width, _, height = word.strip().partition("x")
        if not width.isdigit() or (height and not height.isdigit()):
            raise argparse.ArgumentTypeError(f"{word!r} is not a size; give 1024 or 768x1024")
        sizes.append((int(height or width), int(width)))
    return sizes


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 on, such as 1,4,8")
    return [int(word) for word in words]


def run(args: argparse.Namespace) -> int:
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    bench, name = _bench(args)
    about = _about(args, bench, name)
    print(_headline(about))
    with current(bench.device):
        measured = _tradeoffs(bench, args) if args.tradeoffs else _stages(bench, args)
    print(json.dumps(about | measured))
    return 0


def _stages(bench: Bench, args: argparse.Namespace) -> dict:
    """Measure and print stage by stage; what is measured, for the JSON."""
    ceilings = measure_ceilings(bench.device, bench.dtypes[PLANNER])
    print(_ceilings(ceilings), _header(args.peer), sep="\n", flush=True)
    results = []
    for result in measure(bench, ceilings, work(args), args):
        results.append(result)
        print(_row(result, args.peer), flush=True)
    totals = list(compose(results))
    for total in totals:
        print(_sentence(total))
    rates = {"copy_bytes_per_second": ceilings.copy, "matrix_flops_per_second": ceilings.matrix}
    return rates | {"results": [r.as_json() for r in results], "totals": totals}


def _tradeoffs(bench: Bench, args: argparse.Namespace) -> dict:
    """Measure and print the inexact options at every size."""
    print(bench_tradeoffs.header(), flush=True)
    results = []
    for height, width in args.sizes or SIZES:
        steps = args.steps or STEPS
        for result in bench_tradeoffs.measure(bench.models, height, width, steps, args.repeats, args.limit):
            results.append(result.as_json())
            print(bench_tradeoffs.row(result), flush=True)
    return {"tradeoffs": results}


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before a model is made."""
    for height, width in args.sizes or ():
        check_size(height, width)
    for name in ("prompt_tokens", "repeats", "threads", "steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} is not accepted; use 1 or more")
    if args.tokens is not None and args.tokens < 2:
        raise InputError(
            f"--tokens {args.tokens} is not accepted; use 2 or more, since the first comes with the prompt"
        )
    if not work(args):
        there = bench_growth.STAGES if args.growth else STAGES
        raise InputError(f"no stage begins with {args.stages!r}; there are {', '.join(there)}")
    if args.peer:
        bench_peer.require()
    if args.peer and args.planner_int8:
        raise InputError(
            "a peer shares the planner's weights, which are not 8 bits wide; leave --peer or --planner-int8 away"
        )
    _check_mode(args)


def _check_mode(args: argparse.Namespace) -> None:
    """Refuse arguments that what is asked for does not read."""
    if args.steps and not args.tradeoffs:
        raise InputError("--steps goes with --tradeoffs only, which draws whole pictures")
    modes = {
        "growth": (args.growth, ("batches", "tokens"), "it has tokens and batches of its own"),
        "tradeoffs": (
            args.tradeoffs,
            ("config", "peer", "batches", "tokens", "stages"),
            "it draws whole pictures of a checkpoint, one by one, with our own code",
        ),
    }
    for mode, (asked, unread, reason) in modes.items():
        given = [f"--{name}" for name in unread if getattr(args, name)]
        if asked and given:
            raise InputError(f"--{mode} does not go with {', '.join(given)}: {reason}")


def chosen(prefixes: str) -> list[str]:
    """Names of the stages to run, in order."""
    wanted = tuple(word.strip() for word in prefixes.split(","))
    return [name for name in STAGES if name.startswith(wanted)]


def work(args: argparse.Namespace) -> list[tuple[str, Case]]:
    """Every chosen stage with every case that makes a difference to it."""
    names = chosen(args.stages)
    if args.growth:
        return [(name, case) for name, case in bench_growth.cases(args.prompt_tokens, args.sizes) if name in names]
    cases = [
        Case(height, width, batch, args.prompt_tokens, args.tokens)
        for height, width in args.sizes or SIZES
        for batch in args.batches or (1,)
    ]
    return [(name, case) for name in names for case in _distinct(name, cases)]


def _bench(args: argparse.Namespace) -> tuple[Bench, str]:
    """The models of the arguments, and what they are."""
    where = resolve_device(args.device)
    if args.config:
        dtypes = {name: resolve_dtype(args.dtype, where, name) for name in COMPONENTS}
        models = RandomModels(CONFIGURATIONS[args.config], where, dtypes, args.planner_int8, args.compile)
        name = f"{args.config} configuration, random weights"
        return Bench(models, where, dtypes, args.planner_int8), name + _how(args)
    stored = {PLANNER: torch.int8} if args.planner_int8 else {}
    placement = replace(Placement.on(where, args.dtype), stored=stored)
    small = args.model in (None, "small")
    models = GlmImage.from_pretrained(SMALL if small else args.model, placement=placement, compile=args.compile)
    name = "bundled small checkpoint" if small else args.model
    return Bench(models, where, placement.dtypes, args.planner_int8), name + _how(args)


def _how(args: argparse.Namespace) -> str:
    options = {"planner in 8 bits": args.planner_int8, "decoder compiled": args.compile}
    return "".join(f", {words}" for words, asked in options.items() if asked)


# ---- measuring ----


def measure(
    bench: Bench, ceilings: Ceilings, work: Iterable[tuple[str, Case]], args: argparse.Namespace
) -> Iterator[Result]:
    """Each stage on its case, in order; a component is freed after its last stage."""
    component = None
    for name, case in work:
        if STAGES[name].component != component:
            bench.release()
            component = STAGES[name].component
        yield measure_stage(bench, ceilings, name, case, args)
        gc.collect()
        empty_cache(bench.device)
    bench.release()


def _distinct(name: str, cases: Iterable[Case]) -> list[Case]:
    """Cases that differ for this stage: the first size where sizes do not matter, one image where batches do not."""
    entry, seen = STAGES[name], {}
    for case in cases:
        if not entry.by_batch:
            case = replace(case, batch=1)
        seen.setdefault((entry.by_size and case.size, case.batch), case)
    return list(seen.values())


@torch.no_grad()
def measure_stage(bench: Bench, ceilings: Ceilings, name: str, case: Case, args: argparse.Namespace) -> Result:
    """Warm up, note the peak of memory, then time ours (and the peer) in turn."""
    stage = STAGES[name].make(bench, case)
    ours = stage.ours()
    reset_peak(bench.device)
    time_call(ours, bench.device)
    peak = peak_bytes(bench.device)
    calls = [ours]
    if args.peer and stage.peer is not None:
        calls.append(stage.peer())
        time_call(calls[-1], bench.device)
    samples = interleave(calls, bench.device, args.repeats, args.limit)
    seconds = samples[0].median
    result = Result(
        name,
        case.size if STAGES[name].by_size else None,
        case.batch,
        stage.amount,
        stage.unit,
        seconds,
        samples[0].fastest,
        samples[0].spread,
        len(samples[0].seconds),
        ceilings.seconds(stage.flops, stage.nbytes) / seconds,
        ceilings.bound(stage.flops, stage.nbytes),
        peak,
    )
    if len(samples) == 1:
        return result
    peer = samples[1]
    return replace(result, peer_seconds=peer.median, peer_fastest=peer.fastest, peer_spread=peer.spread)


def compose(results: list[Result]) -> Iterator[dict]:
    """Seconds of a whole picture for each size and batch all of whose stages were measured.

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


# ---- the report ----


def _about(args: argparse.Namespace, bench: Bench, name: str) -> dict:
    """What the figures belong to."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "model": name,
        "device": _device_name(bench.device),
        "dtype": str(bench.dtypes[DECODER]).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "peers": bench_peer.versions() if args.peer else {},
        "prompt_tokens": args.prompt_tokens,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _device_name(where: torch.device) -> str:
    if where.type == "cpu":
        return f"{_processor()}, {os.cpu_count()} cores"
    module = getattr(torch, where.type)
    return module.get_device_name(where) if hasattr(module, "get_device_name") else str(where)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except FileNotFoundError:
        return platform.processor() or platform.machine()


def _headline(about: dict) -> str:
    peers = "".join(f", {name} {version}" for name, version in about["peers"].items())
    return (
        f"{about['model']}; {about['device']}, {about['dtype']}, {about['threads']} threads, "
        f"torch {about['torch']}{peers}, {about['date']}"
    )


def _ceilings(ceilings: Ceilings) -> str:
    copy, matrix = ceilings.copy / 1e9, ceilings.matrix / 1e9
    return f"ceilings: copy {copy:.1f} GB/s (read plus written), matrix product {matrix:.1f} GFLOP/s\n"


def _header(peer: bool) -> str:
    columns = f"{'stage':18} {'size':>10} {'batch':>5} {'time':>10} {'±':>4} {'rate':>16} {'ceiling':>12} {'peak':>9}"
    return columns + (f" {'peer':>10} {'ratio':>7}" if peer else "")


def _row(result: Result, peer: bool) -> str:
    peak = "-" if result.peak is None else f"{result.peak / MIB:.0f} MiB"
    row = (
        f"{result.stage:18} {result.size or '-':>10} {result.batch:5} {_time(result.seconds):>10} "
        f"{result.spread:4.0%} {_scaled(result.rate) + ' ' + result.unit + '/s':>16} "
        f"{result.share:5.0%} {result.bound:6} {peak:>9}"
    )
    if not peer:
        return row
    if result.ratio is None:
        return row + f" {'-':>10} {'-':>7}"
    return row + f" {_time(result.peer_seconds):>10} {result.ratio:6.2f}x"


def _sentence(total: dict) -> str:
    parts = f"plan {_time(total['plan_seconds'])}, steps {_time(total['denoise_seconds'])}"
    return (
        f"whole picture {total['size']}, batch {total['batch']}, {STEPS} steps with guidance, "
        f"added up from the stages: {_time(total['seconds'])} ({parts})"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _scaled(number: float) -> str:
    scale, letter = next(((s, u) for s, u in UNITS if number >= s), (1, ""))
    return f"{number / scale:.3g}{letter}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
