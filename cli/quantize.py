"""`glm-image quantize`: a checkpoint's folder with weights of 8 or 4 bits; an interrupted run is resumed."""

import argparse
import sys
from pathlib import Path

from .progress import Bars

FORMS = ("bf16", "w8", "w4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder, hub id, modelscope:ID, or 'small', the bundled one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--planner", choices=FORMS, default="w8", help="8 bits, 4 bits, or bf16: as it is (default w8)")
    parser.add_argument("--decoder", choices=FORMS, default="bf16", help="the same (default bf16)")


def run(args: argparse.Namespace) -> int:
    from ..pipeline.errors import InputError
    from ..pipeline.loading.checkpoint import DECODER, PLANNER, resolve
    from ..pipeline.loading.placement import gib
    from ..pipeline.loading.quantize import Quantization, quantize

    forms = {name: form for name, form in ((PLANNER, args.planner), (DECODER, args.decoder)) if form != "bf16"}
    if not forms:
        raise InputError("nothing would be rounded; give --planner or --decoder w8 or w4")
    job = Quantization(resolve(args.model, args.revision), args.output, forms)
    try:
        with Bars() as bars:
            folder = quantize(job, bars)
    except KeyboardInterrupt:
        print(f"what is done is kept in {job.partial}; the same command goes on from there", file=sys.stderr)
        raise
    before, after = (
        sum(file.stat().st_size for file in f.rglob("*.safetensors")) for f in (job.checkpoint.folder, folder)
    )
    print(f"{folder}: {gib(after)} of weights instead of {gib(before)}")
    return 0
