"""`glm-image quantize`: a checkpoint with weights of 8 or 4 bits, as a folder or files; a stopped run is resumed."""

import argparse
import sys
from pathlib import Path

from . import arguments
from .progress import Bars

FORMS = ("bf16", "w8", "w4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder, hub id, modelscope:ID, or 'small', the bundled one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    arguments.add_weight_files(parser)
    parser.add_argument("--planner", choices=FORMS, default="w8", help="8 bits, 4 bits, or bf16: as it is (default w8)")
    parser.add_argument("--decoder", choices=FORMS, default="bf16", help="the same (default bf16)")
    parser.add_argument(
        "--single-files",
        action="store_true",
        help="write what is rounded as one file each, in text_encoders and diffusion_models of FOLDER, such as "
        "ComfyUI's models; else a whole checkpoint in the hub's layout",
    )


def run(args: argparse.Namespace) -> int:
    from ..pipeline.errors import InputError
    from ..pipeline.loading.checkpoint import DECODER, PLANNER, resolve, weight_files
    from ..pipeline.loading.quantize import Quantization, quantize
    from ..pipeline.loading.quantize_files import FileQuantization, quantize_to_files

    forms = {name: form for name, form in ((PLANNER, args.planner), (DECODER, args.decoder)) if form != "bf16"}
    if not forms:
        raise InputError("nothing would be rounded; give --planner or --decoder w8 or w4")
    kind, work = (FileQuantization, quantize_to_files) if args.single_files else (Quantization, quantize)
    checkpoint = resolve(args.model, args.revision, files=weight_files(args.planner_file, args.decoder_file))
    job = kind(checkpoint, args.output, forms)
    try:
        with Bars() as bars:
            made = work(job, bars)
    except KeyboardInterrupt:
        print(f"what is done is kept beside {args.output}; the same command goes on from there", file=sys.stderr)
        raise
    for line in _report(job, made):
        print(line)
    return 0


def _report(job, made: Path | list[Path]) -> list[str]:
    """The folder or each file, and how large it is."""
    from ..pipeline.loading.placement import gib

    if isinstance(made, list):
        return [f"{path}: {gib(path.stat().st_size)}" for path in made]
    before, after = (
        sum(file.stat().st_size for file in folder.rglob("*.safetensors")) for folder in (job.checkpoint.folder, made)
    )
    return [f"{made}: {gib(after)} of weights instead of {gib(before)}"]
