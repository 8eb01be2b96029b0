"""`glm-image generate --server URL` and `glm-image plan --server URL`: the same commands on a server."""

import argparse
import sys
from pathlib import Path

from ..pipeline.images import save_png
from ..pipeline.loading.checkpoint import named_folder
from ..pipeline.remote import ENGINES, Generated, GivenPlan, Job, PlannerSampling, generate
from ..pipeline.remote.limits import AUTO, MAX_USD
from . import arguments
from .output import numbered

PLACEMENT = (
    "device",
    "dtype",
    "planner_device",
    "decoder_device",
    "planner_int8",
    "planner_weights",
    "decoder_weights",
    "planner_file",
    "decoder_file",
)
LOCAL_ONLY = (
    "revision",
    *PLACEMENT,
    "plan_seed",
    "plan_rows",
    "temperature",
    "top_p",
    "guidance_interval",
    "step_cache",
    "guidance_batching",
    "compile",
)
LOCAL_PLANNING = (*PLACEMENT, "plan_rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "remote", "generate on a server instead of this machine; keys come from the environment, see docs/serving.md"
    )
    group.add_argument(
        "--server", action="append", metavar="URL", help="vLLM-Omni, SGLang or https://api.z.ai; may be repeated"
    )
    group.add_argument("--engine", default=AUTO, choices=(AUTO, *ENGINES), help="protocol (default: ask the server)")
    _add_pool(group, "image")
    group.add_argument("--max-cost", type=float, default=MAX_USD, help=f"US dollars a run may cost (default {MAX_USD})")


def add_planning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("remote", "plan on a server instead of this machine, see docs/serving.md")
    group.add_argument("--server", action="append", metavar="URL", help="SGLang's planner server; may be repeated")
    _add_pool(group, "plan")


def _add_pool(group, product: str) -> None:
    group.add_argument("--parallel", type=int, default=4, help="requests at once (default 4)")
    group.add_argument(
        "--timeout", type=float, default=600.0, help=f"seconds for one try at one {product} (default 600)"
    )


def plan(args: argparse.Namespace, request):
    """The plan of a `PlanRequest`, made on `args.server`; of the checkpoint only the small files are read."""
    from ..pipeline.loading.checkpoint import SETTINGS, resolve
    from ..pipeline.planning.make_plan import PlannerSettings
    from ..pipeline.planning.remote_plan import plan_remotely

    _name_ignored(args, LOCAL_PLANNING)
    if args.layout and args.layout_mode != "off":
        say("the layout reaches the server by the prompt alone: it favours no tokens there")
    settings = PlannerSettings.from_folder(resolve(args.model, args.revision, patterns=SETTINGS).folder)
    server = " ".join(args.server)
    made = plan_remotely(settings, request, server, args.parallel, args.timeout, say, _say_progress)
    say(made.report)
    return made.plan


def run(args: argparse.Namespace) -> int:
    """Generate on `args.server` and save; what it costs is printed before anything is sent."""
    _name_ignored(args, LOCAL_ONLY)
    job = job_of(args)
    generated = generate(job, say, _say_progress)
    paths = numbered(args.output, len(generated.images))
    for k, (path, image) in enumerate(zip(paths, generated.images)):
        save_png(image, path, about(job, generated, k))
        print(path)
    say(generated.report)
    return 0


def _name_ignored(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    ignored = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if ignored:
        say(f"the server decides on {', '.join(ignored)}: ignored")


def job_of(args: argparse.Namespace) -> Job:
    return Job(
        args.prompt or "",
        " ".join(args.server),
        args.width,
        args.height,
        engine=args.engine,
        count=args.count,
        seed=args.seed,
        steps=args.steps,
        guidance=args.cfg,
        references=arguments.read_images(args.image),
        texts=args.text or (),
        parallel=args.parallel,
        seconds=args.timeout,
        max_usd=args.max_cost,
        planner=planner_sampling(args.model),
        plans=_saved_plans(args.plan),
    )


def _saved_plans(path: Path | None) -> list[GivenPlan]:
    if path is None:
        return []
    from ..pipeline.plan import Plan
    from ..pipeline.planning.remote_plan import given_plans

    return given_plans(Plan.load(path))


def planner_sampling(model: str) -> PlannerSampling:
    """The planner's settings of a checkpoint in a folder here; of the release for any other name."""
    folder = named_folder(model)
    return PlannerSampling.of_checkpoint(folder) if folder.is_dir() else PlannerSampling()


def about(job: Job, generated: Generated, row: int) -> dict[str, str]:
    """PNG text entries of one image; the server's address is not among them."""
    image = generated.images[row]
    plan = job.plans[row if len(job.plans) > 1 else 0] if job.plans else None
    entries = {
        "prompt": job.prompt or plan.prompt,
        "seed": str(generated.seeds[row]),
        "size": f"{image.width}x{image.height}",
        "steps": str(job.steps),
        "guidance_scale": str(job.guidance),
        "engine": ", ".join(generated.engines),
        "software": "comfyui-glm-image",
    }
    if generated.formats[row] != "PNG":
        entries["received_as"] = generated.formats[row]
    return entries


def _say_progress(done: int, total: int) -> None:
    say(f"{done} of {total} done")


def say(text: str) -> None:
    print(text, file=sys.stderr)
