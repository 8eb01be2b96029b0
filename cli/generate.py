"""`glm-image generate`: prompt or plan -> PNG files with everything needed to generate them again."""

import argparse
import json
from pathlib import Path

from ..pipeline.errors import InputError
from ..pipeline.images import cut_back, save_png, to_pil
from ..pipeline.loading.checkpoint import DECODER
from . import arguments, layout, remote
from .output import numbered
from .progress import Bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="what the image shows, with the texts to render in quotes")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"), help="PNG file (default out.png)")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="generate from this saved plan instead of planning")
    arguments.add_model(parser)
    arguments.add_weight_files(parser)
    arguments.add_planning(parser)
    arguments.add_denoising(parser)
    layout.add_arguments(parser)
    remote.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if (args.prompt is None) == (args.plan is None):
        raise InputError("give a prompt, or a plan with --plan, and not both")
    arguments.check_output(args.output, (".png",))
    if args.planner_lora and (args.server or args.plan):
        other = "--server, which plans by its own weights" if args.server else "--plan, which is planned already"
        raise InputError(f"leave out --planner-lora, or {other}")
    if args.lora and args.server:
        raise InputError("leave out --lora, or --server, which draws by its own weights")
    if args.server and args.layout:
        raise InputError("servers take prompts, not layouts; leave out --layout or --server")
    if args.plan is None:
        arguments.choose_size(args)
    elif args.fit:
        raise InputError("a plan has its size; leave out --fit or --plan")
    return remote.run(args) if args.server else generate(args)


def generate(args: argparse.Namespace) -> int:
    """Check everything, then plan (or load a plan), denoise, decode and save."""
    from ..pipeline.denoising.scheduler import schedule
    from ..pipeline.plan import Plan

    options = arguments.denoise_options(args)
    arguments.check_loras(args)
    saved = Plan.load(args.plan) if getattr(args, "plan", None) else None
    control = layout.read(args, *((saved.height, saved.width) if saved else (args.height, args.width)))
    request = None if saved else arguments.plan_request(args, layout.prompt(args, control))
    with Bars() as bars:
        model = arguments.open_model(args, bars, saved=saved)
        if request:
            model.check(request, options, control)
            arguments.warn_of_size(args)
        else:
            schedule(model.scheduler, options.steps, 1)  # the checkpoint's own limit
        plan = saved or model.make_plan(request, control, progress=bars)
        latents = model.denoise(plan, **vars(options), layout=control, progress=bars)
        made = to_pil(model.decode(latents))
        save([cut_back(image, *args.cut) for image in made] if args.fit else made, model, plan, args)
    return 0


def save(images: list, model, plan, args: argparse.Namespace) -> list[Path]:
    """Save a plan's images; prints each file's name."""
    paths = numbered(args.output, len(images))
    for k, (path, image) in enumerate(zip(paths, images)):
        save_png(image, path, about(model, plan, args, k))
        print(path)
    return paths


def about(model, plan, args: argparse.Namespace, row: int) -> dict[str, str]:
    """PNG text entries of one image."""
    drawn_with = model.components.used_loras(DECODER)
    return {
        "prompt": plan.prompts[row],
        "seed": str(args.seed + row),
        "plan_seed": str(plan.seed + row),
        "plan_rows": str(plan.plan_rows),
        **({"planner_loras": json.dumps([vars(lora) for lora in plan.planner_loras])} if plan.planner_loras else {}),
        **({"loras": json.dumps([vars(lora) for lora in drawn_with])} if drawn_with else {}),
        "size": f"{plan.width}x{plan.height}",
        "steps": str(args.steps),
        "guidance_scale": str(args.cfg),
        **{name: str(value) for name, value in arguments.approximations(args).items() if value is not None},
        **arguments.weight_files_as_text(args),
        "model": model.checkpoint.name,
        "revision": model.checkpoint.revision or "",
        "software": "comfyui-glm-image",
    }
