"""`glm-image audit-npu`: every operator that the model runs, and how torch_npu would run it."""

import argparse

from ..pipeline.devices.capabilities import DTYPES, capabilities
from ..pipeline.devices.device import resolve_device
from ..pipeline.diagnostics.operator_audit import audit, listing, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where to run: cpu, or an npu to see its real dispatcher")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="of the weights (default bf16)")
    parser.add_argument("--plain", action="store_true", help="without fused kernels, as on Ascend310P")
    parser.add_argument("--summary", action="store_true", help="only the counts and the findings")


def run(args: argparse.Namespace) -> int:
    """Print the table; exit code 1 if there is a finding."""
    device = resolve_device(args.device)
    fused = not args.plain and (device.type != "npu" or capabilities(device).fused)
    sections = audit(device, DTYPES[args.dtype], fused)
    if not args.summary:
        print("\n\n".join(map(listing, sections)) + "\n")
    print(summary(sections))
    return 1 if any(section.findings for section in sections) else 0
