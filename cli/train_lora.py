"""`glm-image train-lora`: a LoRA for planner or decoder from a folder of images with captions; resumed by itself."""

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from .progress import Bars

MAX_THREADS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a LoRA on images with captions. The same command goes on with a run that was stopped."
    parser.add_argument("component", choices=("planner", "decoder"), help="what is trained")
    parser.add_argument("data", type=Path, help="folder of images, with .txt files beside them or one metadata table")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="the run's folder; resumed")
    parser.add_argument("--model", help="folder, hub id, modelscope:ID, or 'small', the bundled one (default: release)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", help="cpu, cuda, npu:1, ... (default: the best present)")
    parser.add_argument("--dtype", help="of the frozen weights: bf16, fp16 or fp32 (default: the device's best)")
    parser.add_argument("--rank", type=int, help="of the adapter (default 16)")
    parser.add_argument("--alpha", type=float, help="its products count alpha / rank in training (default: rank)")
    parser.add_argument("--targets", help="layers: attention, all, or names with commas (default attention)")
    parser.add_argument("--steps", type=int, help="in all, those before a stop included (default 1000)")
    parser.add_argument("--batch", type=int, help="images at once (default 1)")
    parser.add_argument("--accumulate", type=int, help="batches of a step (default 1)")
    parser.add_argument("--lr", type=float, help="learning rate (default 1e-4)")
    parser.add_argument("--schedule", help="of the learning rate: cosine or constant (default cosine)")
    parser.add_argument("--warmup", type=int, help="steps in which it rises (default 20)")
    parser.add_argument("--weight-decay", type=float, help="of AdamW (default 0)")
    parser.add_argument("--drop", type=float, help="decoder: share of images without plan and texts (default 0.1)")
    parser.add_argument("--pixels", type=int, help="about how many an image is resized to (default: its own)")
    parser.add_argument("--seed", type=int, help="of order, noise and the adapter's first matrices (default 0)")
    parser.add_argument("--save-every", type=int, metavar="STEPS", help="how often the state is kept (default 50)")
    parser.add_argument(
        "--sample", dest="samples", action="append", metavar="PROMPT", help="render it on the way; may be repeated"
    )
    parser.add_argument("--sample-every", type=int, metavar="STEPS", help="how often (default 250)")
    parser.add_argument("--sample-steps", type=int, metavar="N", help="denoising steps of a sample (default 20)")
    parser.add_argument(
        "--no-checkpointing",
        dest="checkpointing",
        action="store_false",
        default=None,
        help="keep all activations: faster, much more memory",
    )
    parser.add_argument(
        "--keep-layers",
        type=int,
        metavar="N",
        help="layers that are kept and not computed again, which is faster (default as many as memory has room for)",
    )
    parser.add_argument("--anyway", action="store_true", default=None, help="start though memory seems too small")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)

    import torch

    from ..training.lora.train import train

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        with Bars() as bars:
            print(train(settings, report=lambda text: print(text, file=sys.stderr, flush=True), progress=bars))
    except KeyboardInterrupt:
        print(f"what is done is kept in {settings.out}; the same command goes on from there", file=sys.stderr)
        raise
    return 0


def settings_of(args: argparse.Namespace):
    """The `LoraSettings` of these arguments, checked; what was not given keeps its default."""
    from ..pipeline.errors import InputError
    from ..training.lora.settings import LoraSettings

    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise InputError(f"--threads {args.threads} is not accepted; use 1 to {MAX_THREADS}")
    given = {field.name: getattr(args, field.name) for field in fields(LoraSettings)}
    needed = {field.name for field in fields(LoraSettings) if field.default is MISSING}
    given = {name: value for name, value in given.items() if value is not None or name in needed}
    return LoraSettings(**{**given, "samples": tuple(given.get("samples", ()))})
