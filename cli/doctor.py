"""`glm-image doctor`: what is installed, what it can do, what is wrong and what to do about it."""

import argparse
import json
from dataclasses import asdict

from ..pipeline.diagnostics.doctor import examine
from ..pipeline.diagnostics.findings import CheckContext, Wanted
from ..pipeline.loading import HUB_ID
from . import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--model-info", action="store_true", help="count the released model's parameters")
    parser.description = "What is installed, what is wrong, and what 'generate' with the same options would do."
    arguments.add_model(parser)
    arguments.add_weight_files(parser)
    arguments.add_planning(parser)
    arguments.add_denoising(parser)
    parser.set_defaults(model=None)  # the release's sizes, whether it is here or not


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when nothing fails, else 1."""
    context = CheckContext(args.device, lambda: _wanted(args))
    results = examine(context, args.model_info)
    good = all(result.status != "fail" for result in results)
    if args.json:
        print(json.dumps({"ok": good, "findings": [asdict(result) for result in results]}, indent=2))
        return 0 if good else 1
    for result in results:
        print(f"{result.status:4}  {result.topic:14}  " + result.text.replace("\n", "\n" + " " * 22))
    print("\nnothing is wrong" if good else "\nsomething does not work; see the lines that begin with 'fail'")
    return 0 if good else 1


def _wanted(args: argparse.Namespace) -> Wanted:
    """What `generate` would place, and what it checks before it plans."""
    name, args.model = args.model or "the release", args.model or HUB_ID
    arguments.choose_size(args)
    options, plan = arguments.denoise_options(args), arguments.plan_request(args, "any prompt")
    sizes, checkpoint = arguments.known_sizes(args)
    if checkpoint is None and args.model != HUB_ID:
        name = f"{name} (not here; by the release's sizes)"

    def check(placement) -> None:
        if checkpoint is not None:
            model = arguments.placed_model(args, checkpoint, placement)
            model.check(plan, options)
            model.settings.prepare(plan)

    return Wanted(name, sizes, arguments.placement_request(args, checkpoint and checkpoint.folder), check)
