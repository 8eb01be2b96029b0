"""`glm-image doctor`: what is installed, what it can do, what is wrong and what to do about it."""

import argparse
import json
from dataclasses import asdict

from ..pipeline.diagnostics.doctor import examine
from ..pipeline.diagnostics.findings import CheckContext


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--model-info", action="store_true", help="count the released model's parameters")
    parser.add_argument("--device", help="device to try (default: the best present)")
    parser.add_argument("--model", help="checkpoint folder for the placement (default: the release's sizes)")
    parser.add_argument("--width", type=int, default=1024, help="pixels, for the placement (default 1024)")
    parser.add_argument("--height", type=int, default=1024, help="pixels, for the placement (default 1024)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when nothing fails, else 1."""
    context = CheckContext(args.device, args.model, args.height, args.width)
    results = examine(context, args.model_info)
    good = all(result.status != "fail" for result in results)
    if args.json:
        print(json.dumps({"ok": good, "findings": [asdict(result) for result in results]}, indent=2))
        return 0 if good else 1
    for result in results:
        print(f"{result.status:4}  {result.topic:14}  " + result.text.replace("\n", "\n" + " " * 22))
    print("\nnothing is wrong" if good else "\nsomething does not work; see the lines that begin with 'fail'")
    return 0 if good else 1
