"""`glm-image plan`: prompt -> a plan file, which `generate --plan` draws."""

import argparse
from pathlib import Path

from . import arguments
from .generate import make_plan
from .progress import Bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw, with the texts to draw in quotes")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("plan.safetensors"), help="file (default plan.safetensors)"
    )
    arguments.add_model(parser)
    arguments.add_planning(parser)


def run(args: argparse.Namespace) -> int:
    arguments.check_output(args.output, (".safetensors",))
    images = arguments.read_images(args.image)
    with Bars() as bars:
        model = arguments.open_model(args, bars)
        make_plan(model, args, images, bars).save(args.output)
    print(args.output)
    return 0
