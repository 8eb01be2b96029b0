"""`glm-image plan`: prompt -> a plan file, from which `generate --plan` generates, here or on a server."""

import argparse
from pathlib import Path

from ..pipeline.errors import InputError
from . import arguments, layout, remote
from .progress import Bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what the image shows, with the texts to render in quotes")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("plan.safetensors"), help="file (default plan.safetensors)"
    )
    arguments.add_model(parser)
    arguments.add_weight_files(parser)
    arguments.add_planning(parser)
    layout.add_arguments(parser, denoising=False)
    remote.add_planning(parser)


def run(args: argparse.Namespace) -> int:
    arguments.check_output(args.output, (".safetensors",))
    if args.planner_lora and args.server:
        raise InputError("leave out --planner-lora, or --server, which plans by its own weights")
    arguments.choose_size(args)
    control = layout.read(args, args.height, args.width)
    request = arguments.plan_request(args, layout.prompt(args, control))
    if args.server:
        arguments.warn_of_size(args)
        remote.plan(args, request).save(args.output)
    else:
        with Bars() as bars:
            model = arguments.open_model(args, bars)
            arguments.warn_of_size(args)
            model.make_plan(request, control, progress=bars).save(args.output)
    print(args.output)
    return 0
