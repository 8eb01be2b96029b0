"""`glm-image generate --server URL`: the same command on a serving engine or the hosted API."""

import argparse
import sys

from ..pipeline.errors import InputError
from ..pipeline.images import save_png
from ..pipeline.loading.checkpoint import named_folder
from ..pipeline.remote import ENGINES, Generated, Job, PlannerSampling, generate
from ..pipeline.remote.limits import AUTO, MAX_USD
from . import arguments
from .output import numbered

LOCAL_ONLY = (
    "revision",
    "device",
    "dtype",
    "planner_device",
    "decoder_device",
    "planner_int8",
    "planner_weights",
    "decoder_weights",
    "plan_seed",
    "plan_rows",
    "temperature",
    "top_p",
    "guidance_interval",
    "step_cache",
    "guidance_batching",
    "compile",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "remote", "generate on a server instead of this machine; keys come from the environment, see docs/serving.md"
    )
    group.add_argument(
        "--server", action="append", metavar="URL", help="vLLM-Omni, SGLang or https://api.z.ai; may be repeated"
    )
    group.add_argument("--engine", default=AUTO, choices=(AUTO, *ENGINES), help="protocol (default: ask the server)")
    group.add_argument("--parallel", type=int, default=4, help="requests at once (default 4)")
    group.add_argument("--timeout", type=float, default=600.0, help="seconds for one try at one image (default 600)")
    group.add_argument("--max-cost", type=float, default=MAX_USD, help=f"US dollars a run may cost (default {MAX_USD})")


def run(args: argparse.Namespace) -> int:
    """Generate on `args.server` and save; what it costs is printed before anything is sent."""
    if args.plan is not None:
        raise InputError("servers take prompts, not plans; leave out --plan or --server")
    ignored = [f"--{name.replace('_', '-')}" for name in LOCAL_ONLY if getattr(args, name) is not None]
    if ignored:
        say(f"the server decides on {', '.join(ignored)}: ignored")
    job = job_of(args)
    generated = generate(job, say, lambda done, total: say(f"{done} of {total} done"))
    paths = numbered(args.output, len(generated.images))
    for k, (path, image) in enumerate(zip(paths, generated.images)):
        save_png(image, path, about(job, generated, k))
        print(path)
    say(generated.report)
    return 0


def job_of(args: argparse.Namespace) -> Job:
    return Job(
        args.prompt,
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
    )


def planner_sampling(model: str) -> PlannerSampling:
    """The planner's settings of a checkpoint in a folder here; of the release for any other name."""
    folder = named_folder(model)
    return PlannerSampling.of_checkpoint(folder) if folder.is_dir() else PlannerSampling()


def about(job: Job, generated: Generated, row: int) -> dict[str, str]:
    """PNG text entries of one image; the server's address is not among them."""
    image = generated.images[row]
    entries = {
        "prompt": job.prompt,
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


def say(text: str) -> None:
    print(text, file=sys.stderr)
