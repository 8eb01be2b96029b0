"""`glm-image demo`: one picture by the small checkpoint that comes with the package, offline."""

import argparse
from pathlib import Path

from . import arguments, layout
from .generate import generate

PROMPT = 'a blue poster that says "HELLO" in white'
WIDTH, HEIGHT, STEPS = 192, 96, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"what to draw (default: {PROMPT})")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="PNG file (default demo.png)")
    arguments.add_model(parser)
    arguments.add_planning(parser)
    arguments.add_drawing(parser, STEPS)
    layout.add_arguments(parser)
    parser.set_defaults(model="small", width=WIDTH, height=HEIGHT)


def run(args: argparse.Namespace) -> int:
    arguments.check_output(args.output, (".png",))
    generate(args)
    print("Drawn by the bundled small checkpoint: words on simple scenes, nothing else. See docs/small_model.md.")
    return 0
