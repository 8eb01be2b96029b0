"""`glm-image generate`: prompt or plan -> PNG files with everything needed to draw them again."""

import argparse
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..pipeline.errors import InputError
from ..pipeline.files import replacing
from . import arguments, remote
from .progress import Bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what to draw, with the texts to draw in quotes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"), help="PNG file (default out.png)")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="draw this saved plan instead of planning")
    arguments.add_model(parser)
    arguments.add_planning(parser)
    arguments.add_drawing(parser)
    remote.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..pipeline.plan import Plan

    if (args.prompt is None) == (args.plan is None):
        raise InputError("give a prompt, or a plan with --plan, and not both")
    arguments.check_output(args.output, (".png",))
    if args.server:
        return remote.run(args)
    images = arguments.read_images(args.image)
    saved = Plan.load(args.plan) if args.plan else None
    with Bars() as bars:
        model = arguments.open_model(args, bars)
        plan = saved or make_plan(model, args, images, bars)
        draw(model, plan, args, bars)
    return 0


def make_plan(model, args: argparse.Namespace, images: list[Image.Image], bars):
    from ..pipeline.denoising.denoise import check_options
    from ..pipeline.denoising.scheduler import schedule

    if hasattr(args, "steps"):
        schedule(model.scheduler, args.steps, 1)  # refuse wrong numbers before planning
        check_options(**drawing(args))
    return model.plan(
        args.prompt,
        args.height,
        args.width,
        images,
        args.seed if args.plan_seed is None else args.plan_seed,
        args.temperature,
        args.top_p,
        count=args.count,
        progress=bars,
    )


def draw(model, plan, args: argparse.Namespace, bars) -> list[Path]:
    """Denoise, decode and save a plan's images; prints each file's name."""
    from ..pipeline.images import to_pil

    latents = model.denoise(
        plan,
        args.steps,
        args.cfg,
        args.seed,
        glyph_texts=args.text,
        glyph_mode=args.glyph_mode,
        progress=bars,
        **drawing(args),
    )
    pictures = to_pil(model.decode(latents))
    paths = numbered(args.output, len(pictures))
    for k, (path, picture) in enumerate(zip(paths, pictures)):
        save_png(picture, path, about(model, plan, args, k))
        print(path)
    return paths


def drawing(args: argparse.Namespace) -> dict:
    """How the steps are computed, as options of `denoise`."""
    return arguments.shortcuts(args) | {"guidance_batching": args.guidance_batching or "auto"}


def numbered(path: Path, count: int) -> list[Path]:
    """`out.png`, or `out_0.png`, `out_1.png` ... for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}_{k}") for k in range(count)]


def about(model, plan, args: argparse.Namespace, row: int) -> dict[str, str]:
    """PNG text entries of one image."""
    return {
        "prompt": plan.prompts[row],
        "seed": str(args.seed + row),
        "plan_seed": str(plan.seed + row),
        "size": f"{plan.width}x{plan.height}",
        "steps": str(args.steps),
        "guidance_scale": str(args.cfg),
        **{name: str(value) for name, value in arguments.shortcuts(args).items() if value is not None},
        "model": model.checkpoint.name if args.model != "small" else "small",
        "revision": model.checkpoint.revision or "",
        "software": "comfyui-glm-image",
    }


def save_png(picture: Image.Image, path: Path, entries: dict[str, str]) -> None:
    """Write a PNG with text entries, whole or not at all."""
    info = PngInfo()
    for key, value in entries.items():
        info.add_itxt(key, value)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)
