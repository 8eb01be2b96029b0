"""`glm-image compare`: the reference's own pipeline and ours on the same weights, as figures and pictures."""

import argparse
import json
import sys
from pathlib import Path

from ..pipeline.files import check_writable, write_text
from ..pipeline.images import save_png
from . import arguments
from .device_check import lines_of
from .progress import Bars

PROMPT = 'A white poster with the word "HELLO" in red letters'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"what both make (default: {PROMPT})")
    parser.add_argument("-o", "--output", type=Path, default=Path("compare"), help="beginning of the three files")
    arguments.add_model(parser)
    parser.add_argument("--width", type=int, default=1024, help="pixels, a multiple of 32 (default 1024)")
    parser.add_argument("--height", type=int, default=1024, help="pixels, a multiple of 32 (default 1024)")
    parser.add_argument("--steps", type=int, default=50, help="passes through the decoder (default 50)")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale (default 1.5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise; plans are greedy (default 0)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every figure is within its limit, else 1; the files are written either way."""
    from ..pipeline.device_check.compare import CompareRequest, Comparison, compare
    from ..pipeline.device_check.reference_pair import ReferencePair
    from ..pipeline.device_check.results import markdown
    from ..pipeline.device_check.sheet import sheet

    request = CompareRequest(args.prompt, args.height, args.width, args.steps, args.cfg, args.seed)
    paths = {suffix: args.output.with_name(args.output.name + suffix) for suffix in (".json", ".md", ".png")}
    for path in paths.values():
        check_writable(path)
    args.planner_weights = args.planner_weights or (None if args.planner_int8 else "full")
    args.decoder_weights = args.decoder_weights or "full"  # never rounded to make them fit
    with Bars() as bars:
        model = arguments.open_model(args, bars)
        comparison = Comparison(request, model, ReferencePair(model.checkpoint.folder, model.placement))
    report = compare(comparison, lambda stage: print(lines_of(stage), flush=True))
    for suffix, text in ((".json", json.dumps(report.as_json(), indent=2)), (".md", markdown(report))):
        write_text(paths[suffix], text)
    save_png(sheet(comparison), paths[".png"], {"software": "comfyui-glm-image"})
    print(*paths.values(), sep="\n")
    if report.failed:
        print(f"differs: {', '.join(report.failed)}; please open an issue with all three files", file=sys.stderr)
    return 1 if report.failed else 0
