"""`glm-image eval`: generate a benchmark's prompts, read the images by OCR, score the words, write a report.

A reading failure and an image without legible words are different things: when no image of a run gives a single
word, the run is not scored, it is an error.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..pipeline.errors import InputError
from ..pipeline.evaluation import edits, ocr
from ..pipeline.evaluation.generate import ABLATIONS, check_settings, generate_batch, generate_images
from ..pipeline.evaluation.prompts import BENCHMARKS, EDITS, SMALL, Case, load_cases
from ..pipeline.evaluation.read import check_reader, existing_image, open_image, read
from ..pipeline.evaluation.report import write_report
from ..pipeline.files import write_text
from ..pipeline.geometry import check_size
from ..pipeline.progress import Progress
from . import arguments
from .progress import Bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Generate a benchmark's prompts, read the images by OCR, score the words, write a report."
    parser.add_argument("--benchmark", default="small", help=f"{', '.join((*BENCHMARKS, EDITS))} (default: small)")
    parser.add_argument("--data", type=Path, help="folder of the benchmark's files; small comes with the package")
    arguments.add_model(parser)
    arguments.add_weight_files(parser)
    arguments.add_planner_lora(parser)
    arguments.add_lora(parser)
    parser.set_defaults(model="small")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of images and report; resumed")
    parser.add_argument("--limit", type=int, help="only the first prompts of each group")
    parser.add_argument("--height", type=int, help="pixels, where a prompt does not say its own (default: 1024)")
    parser.add_argument("--width", type=int, help="pixels, where a prompt does not say its own (default: 1024)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale (default: 1.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; the next ones count up")
    parser.add_argument("--batch", type=int, default=1, help="images generated at once (default: 1)")
    parser.add_argument("--ablation", default="none", help=f"{', '.join(ABLATIONS)} (default: none)")
    parser.add_argument("--read-only", action="store_true", help="generate nothing; score the images that lie in --out")
    parser.add_argument("--ocr", default="auto", help=f"{', '.join(ocr.ENGINES)} (default: auto)")
    parser.add_argument("--languages", default="eng", help="of tesseract, as eng+chi_sim (default: eng)")
    parser.add_argument(
        "--strict", action="store_true", help="tell apart what looks alike: curly and straight quotes, dashes, widths"
    )


def run(args: argparse.Namespace) -> int:
    """Everything that can be wrong is looked at before the first image is generated."""
    if args.ablation not in ABLATIONS:
        raise InputError(f"ablation {args.ablation!r} is not known; use {', '.join(ABLATIONS)}")
    for name in ("batch", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is not accepted; use 1 or more")
    if args.benchmark == EDITS:
        return _run_edits(args)
    cases = [_sized(case, args) for case in load_cases(args.benchmark, args.data, args.limit)]
    engine = ocr.available_engine(args.ocr)  # last: what was asked for is judged on every machine alike
    about = {"benchmark": args.benchmark, "OCR": f"{engine} ({args.languages})"}
    about["comparison"] = "strict" if args.strict else "look-alikes count as one"
    if not args.read_only:
        settings = _settings(args)
        model = _open_model(args, cases, args.batch)
        settings |= _forms(model)
        check_settings(args.out, settings)
        generate_images(cases, args.out, _painter(args, model), args.batch, _bar("generating"))
        about = {**about, **{key: str(value) for key, value in settings.items()}}
    readings = read(cases, args.out, engine, args.languages, _bar("reading"), args.strict)
    print(write_report(args.out, f"GLM-Image: {args.benchmark}", about, cases, readings))
    return 0


def _run_edits(args: argparse.Namespace) -> int:
    """Edit every image of the benchmark, one at a time, and say what changed and what stayed."""
    if args.ablation != "none":
        raise InputError(f"{EDITS} has no ablations; leave --ablation out")
    cases = edits.load_edits(args.data or SMALL / "edit", args.limit)
    engine = ocr.available_engine(args.ocr)
    about = {"benchmark": EDITS, "OCR": f"{engine} ({args.languages})"}
    if not args.read_only:
        settings = _settings(args)
        model = _open_model(args, cases, count=1)
        settings |= _forms(model)
        check_settings(args.out, settings)
        generate_images(cases, args.out, _editor(args, model), 1, _bar("generating"))
        about = {**about, **{key: str(value) for key, value in settings.items()}}
    images = [open_image(existing_image(args.out, case)) for case in cases]
    results = [edits.score_edit(case, image, engine, args.languages, args.strict) for case, image in zip(cases, images)]
    check_reader([result for result in results if result.kind == "word"])
    text, content = edits.report(f"GLM-Image: {EDITS}", about, results)
    edits.edit_sheet(cases, images).save(args.out / "sheet.png")
    write_text(args.out / "report.md", text)
    write_text(args.out / "report.json", json.dumps(content, indent=2))
    print(text)
    return 0


def _editor(args: argparse.Namespace, model) -> Callable:
    """Generate edits with the model, each with a seed of its own."""

    def make(cases: list[edits.EditCase], index: int) -> list[Image.Image]:
        return [edits.generate_edit(model, case, args.seed + index, steps=args.steps, cfg=args.cfg) for case in cases]

    return make


def _sized(case: Case, args: argparse.Namespace) -> Case:
    """The case with a size: its own, else the user's, else 1024."""
    height, width = case.height or args.height or 1024, case.width or args.width or 1024
    check_size(height, width)
    return replace(case, height=height, width=width)


def _settings(args: argparse.Namespace) -> dict:
    """What images depend on, besides the prompts and the form of the weights."""
    names = ("model", "revision", "steps", "cfg", "seed", "ablation", "height", "width", "device", "dtype")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return settings | arguments.weight_files_as_text(args) | arguments.check_loras(args)


def _forms(model) -> dict:
    """To what weights are rounded while they load; `auto` takes it from free memory, so the words given do not tell."""
    from ..pipeline.loading.checkpoint import title

    return {f"{title(name)}_weights": form for name, form in model.placement.forms.items()}


def _bar(what: str) -> Progress:
    """A progress bar that follows `progress(done, total)`."""
    bar = tqdm(desc=what, unit="image", disable=None)  # None: only on a terminal

    def progress(done: int, total: int, **_more) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _painter(args: argparse.Namespace, model) -> Callable[[list[Case], int], list[Image.Image]]:
    """Generate with the model; every prompt has a seed of its own, counted from the first prompt of the benchmark."""

    def make(cases: list[Case], index: int) -> list[Image.Image]:
        seed = args.seed + index
        return generate_batch(model, cases, seed, steps=args.steps, cfg=args.cfg, ablation=args.ablation)

    return make


def _open_model(args: argparse.Namespace, cases: list, count: int):
    """The model with room for `count` of the largest images at once."""
    largest = max(cases, key=lambda case: case.height * case.width)
    planned = {"height": largest.height, "width": largest.width, "count": count}
    with Bars() as bars:
        return arguments.open_model(argparse.Namespace(**{**vars(args), **planned}), bars)
