"""`glm-image bench`: each stage against the device's limits, as a table; the last line of the output is JSON."""

import argparse
import json
from dataclasses import fields

import torch

from ..pipeline.benchmark import plans, report, tradeoffs
from ..pipeline.benchmark.case import STEPS, Bench
from ..pipeline.benchmark.models import CONFIGURATIONS
from ..pipeline.benchmark.run import SIZES, BenchRequest, about, compose, measure, open_bench
from ..pipeline.benchmark.timing import measure_ceilings
from ..pipeline.devices.device import current
from ..pipeline.loading.checkpoint import PLANNER


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
    parser.add_argument("--planner-int8", action="store_true", help="the same as --planner-weights w8")
    for name in ("planner", "decoder"):
        text = f"round the {name}'s weights to 8 or 4 bits (default full)"
        parser.add_argument(f"--{name}-weights", choices=("full", "w8", "w4"), default="full", help=text)
    parser.add_argument("--compile", action="store_true", help="run the decoder's blocks by torch.compile")
    parser.add_argument("--threads", type=int, help="CPU threads")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--growth", action="store_true", help="only how cost grows with tokens and with pixels")
    what.add_argument(
        "--tradeoffs", action="store_true", help="only the options that trade exactness for speed, on whole images"
    )
    what.add_argument(
        "--plans", type=int, metavar="N", help="only N whole plans: tokens a pass, and whether they equal single tokens"
    )
    parser.add_argument(
        "--plan-rows", type=_numbers, help="rows of a pass of --plans, by commas (default: the device's)"
    )
    parser.add_argument(
        "--samplings", type=_words, help="of --plans, by commas: release, top_p 1, greedy (default all)"
    )
    parser.add_argument(
        "--before", metavar="FOLDER", help="another checkout, whose plans --plans times in turn with ours"
    )
    parser.add_argument("--sizes", type=_sizes, help="sides or WIDTHxHEIGHT, by commas (default 512,1024)")
    parser.add_argument("--batches", type=_numbers, help="images at once, by commas (default 1)")
    parser.add_argument("--steps", type=int, help=f"steps of an image of --tradeoffs (default {STEPS})")
    parser.add_argument("--stages", type=_words, default="", help="only stages whose names begin so, by commas")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, help="plan at most so many tokens; default: the whole plan")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each stage, after one that is not")
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a stage is not repeated")
    parser.add_argument("--peer", action="store_true", help="time transformers and diffusers too (extra: peer)")


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "512,768x1024" -> (height, width) pixels each."""
    sizes = []
    for word in text.split(","):
        width, _, height = word.strip().partition("x")
        if not width.isdigit() or (height and not height.isdigit()):
            raise argparse.ArgumentTypeError(f"{word!r} is not a size; give 1024 or 768x1024")
        sizes.append((int(height or width), int(width)))
    return tuple(sizes)


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 on, such as 1,4,8")
    return tuple(int(word) for word in words)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def run(args: argparse.Namespace) -> int:
    request = request_of(args)
    if request.threads:
        torch.set_num_threads(request.threads)
    bench, name = open_bench(request)
    belongs = about(request, bench, name)
    print(report.headline(belongs))
    with current(bench.device):
        measured = _measured(bench, request)
    print(json.dumps(belongs | measured))
    return 0


def request_of(args: argparse.Namespace) -> BenchRequest:
    if args.planner_int8 and args.planner_weights == "full":
        args.planner_weights = "w8"
    return BenchRequest(**{field.name: getattr(args, field.name) for field in fields(BenchRequest)})


def _measured(bench: Bench, request: BenchRequest) -> dict:
    if request.plans:
        return _plans(bench, request)
    return _tradeoffs(bench, request) if request.tradeoffs else _stages(bench, request)


def _plans(bench: Bench, request: BenchRequest) -> dict:
    """Measure and print whole plans of every sampling."""
    ceilings = measure_ceilings(bench.device, bench.dtypes[PLANNER])
    print(report.ceilings(ceilings), plans.header(bool(request.before), request.peer), sep="\n", flush=True)
    results = []
    for result in plans.measure(bench, ceilings, request):
        results.append(result.as_json())
        print(plans.row(result), flush=True)
    return {"plans": results}


def _stages(bench: Bench, request: BenchRequest) -> dict:
    """Measure and print stage by stage; what is measured, for the JSON."""
    ceilings = measure_ceilings(bench.device, bench.dtypes[PLANNER])
    print(report.ceilings(ceilings), report.header(request.peer), sep="\n", flush=True)
    results = []
    for result in measure(bench, ceilings, request.work(), request):
        results.append(result)
        print(report.row(result, request.peer), flush=True)
    totals = list(compose(results))
    for total in totals:
        print(report.sentence(total))
    rates = {"copy_bytes_per_second": ceilings.copy, "matrix_flops_per_second": ceilings.matrix}
    return rates | {"results": [result.as_json() for result in results], "totals": totals}


def _tradeoffs(bench: Bench, request: BenchRequest) -> dict:
    """Measure and print the inexact options at every size."""
    print(tradeoffs.header(), flush=True)
    results = []
    for height, width in request.sizes or SIZES:
        steps = request.steps or STEPS
        for result in tradeoffs.measure(bench.models, height, width, steps, request.repeats, request.limit):
            results.append(result.as_json())
            print(tradeoffs.row(result), flush=True)
    return {"tradeoffs": results}
