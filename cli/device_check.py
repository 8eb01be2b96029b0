"""`glm-image device-check`: one command that proves an installation on a card, for an issue."""

import argparse
import json
import sys
from pathlib import Path

from ..pipeline.benchmark.models import CONFIGURATIONS
from ..pipeline.device_check.check import DeviceCheckRequest, check_device
from ..pipeline.device_check.results import StageReport, markdown, number
from ..pipeline.device_check.stages import STAGES
from ..pipeline.errors import InputError
from ..pipeline.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("device-check"), help="beginning of the two files")
    parser.add_argument("--device", help="auto, cpu, cuda, npu, ...")
    parser.add_argument("--dtype", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="a checkpoint (default: random weights)")
    parser.add_argument(
        "--config",
        default="auto",
        choices=("auto", *sorted(CONFIGURATIONS)),
        help="sizes of the random weights (auto: the release's where they fit)",
    )
    parser.add_argument("--stages", default="", help=f"names' beginnings, by commas: {', '.join(STAGES)}")
    parser.add_argument("--width", type=int, help="pixels (default 1024, on a CPU 256)")
    parser.add_argument("--height", type=int, help="pixels (default 1024, on a CPU 256)")
    parser.add_argument("--steps", type=int, help="of the whole image (default 50, on a CPU 4)")
    parser.add_argument("--tokens", type=int, default=128, help="of the plans that are timed (default 128)")
    parser.add_argument("--peer", action="store_true", help="time transformers and diffusers too (extra: peer)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every stage passed, else 1; both files are written either way."""
    request, stages = request_of(args), chosen(args.stages)
    report = check_device(request, stages, lambda stage: print(lines_of(stage), flush=True))
    text = json.dumps(report.as_json(), indent=2)
    for suffix, content in ((".json", text), (".md", markdown(report))):
        path = args.output.with_name(args.output.name + suffix)
        write_text(path, content)
        print(path)
    if report.failed:
        print(f"failed: {', '.join(report.failed)}; please open an issue with both files", file=sys.stderr)
    return 1 if report.failed else 0


def request_of(args: argparse.Namespace) -> DeviceCheckRequest:
    """The arguments, with sizes that suit the device."""
    from ..pipeline.devices.device import resolve_device

    on_cpu = resolve_device(args.device).type == "cpu"
    side, steps = (256, 4) if on_cpu else (1024, 50)
    return DeviceCheckRequest(
        device=args.device,
        model=args.model,
        config=args.config,
        dtype=args.dtype,
        height=args.height or side,
        width=args.width or side,
        steps=steps if args.steps is None else args.steps,
        tokens=args.tokens,
        peer=args.peer,
    )


def chosen(prefixes: str) -> dict:
    wanted = tuple(word.strip() for word in prefixes.split(","))
    stages = {name: stage for name, stage in STAGES.items() if name.startswith(wanted)}
    if not stages:
        raise InputError(f"no stage begins with {prefixes!r}; there are {', '.join(STAGES)}")
    return stages


def lines_of(stage: StageReport) -> str:
    """A stage's figures as text."""
    lines = [f"{'ok' if stage.good else 'FAIL':4}  {stage.name} ({stage.seconds:.1f} s)"]
    for figure in stage.figures:
        share = "" if figure.share is None else f", {figure.share:.0%} of {figure.bound}"
        note = f"  ({figure.note})" if figure.note else ""
        lines.append(f"      {figure.name}: {number(figure.value)} {figure.unit}{share}{note}")
    return "\n".join(lines + ([f"      {stage.error}"] if stage.error else []))
