"""Train the small model stage by stage, then write it as a checkpoint folder.

    python -m comfyui_glm_image.training vae --minutes 15
    python -m comfyui_glm_image.training vision --minutes 5
    python -m comfyui_glm_image.training planner --minutes 40
    python -m comfyui_glm_image.training decoder --minutes 60
    python -m comfyui_glm_image.training export --out checkpoints/small
    python -m comfyui_glm_image.training plans --start checkpoints/small    a minute's look at a planner
    python -m comfyui_glm_image.training words --start checkpoints/small    the same at a decoder
    python -m comfyui_glm_image.training benchmark --out checkpoints/small/benchmark
    python -m comfyui_glm_image.training truth --out out/truth     the benchmark's scenes, the ceiling of any score
    python -m comfyui_glm_image.training curves --out docs/images/small_model_training.png
    python -m comfyui_glm_image.training growth --report growth.json --out growth.png    what `glm-image bench` measured

The stages do not depend on each other. Each goes on where it was stopped; `--minutes` is the total over restarts.
"""

import argparse
from pathlib import Path

import torch

from ..pipeline.devices.device import resolve_device
from . import autoencoder, curves, decoder, export, planner, vision
from .common import Recipe

SIZES = "1x4:1,2x4:2,2x6:1,3x6:4,4x6:4"  # with many lines, so that many words are seen often enough


# stage -> what trains it, pictures a step, learning rate of AdamW
STAGES = {
    "vae": (autoencoder.train, 16, 2.5e-3),
    "vision": (vision.train, 32, 2e-3),
    "planner": (planner.train, 16, 2e-3),
    "decoder": (decoder.train, 32, 1.5e-3),
}

OUTPUTS = {
    "plans": lambda args: planner.print_plans(args.start),
    "words": lambda args: decoder.print_words(args.start),
    "export": lambda args: export.write_checkpoint(args.runs, args.out, args.start),
    "benchmark": lambda args: export.write_benchmark(args.out),
    "truth": lambda args: export.write_truth(args.out),
    "curves": lambda args: curves.write_curves(args.runs, args.out),
    "growth": lambda args: curves.write_growth(args.report, args.out),
}
NEEDS = {
    "plans": ("start",),
    "words": ("start",),
    "export": ("out",),
    "benchmark": ("out",),
    "truth": ("out",),
    "curves": ("out",),
    "growth": ("out", "report"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, *OUTPUTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of training states (default: runs)")
    parser.add_argument("--out", type=Path, help="what export, benchmark, truth, curves or growth writes")
    parser.add_argument("--report", type=Path, help="what growth draws: the output of `glm-image bench --growth`")
    parser.add_argument("--minutes", type=float, default=30, help="in all, restarts included")
    parser.add_argument("--batch", type=int, help="pictures a step, of eight tokens each")
    parser.add_argument("--sizes", default=SIZES, help="ROWSxCOLUMNS:WEIGHT of tokens of 32 px, comma-separated")
    parser.add_argument("--regions", type=float, default=0.5, help="share of pictures with two to four words")
    parser.add_argument("--edits", type=float, default=0.4, help="share of steps on edits, of planner and decoder")
    parser.add_argument("--scenes", type=float, default=0.4, help="share of the other steps on scenes of 256 px a side")
    parser.add_argument("--lr", type=float, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument(
        "--start",
        type=Path,
        help="checkpoint folder: a new stage starts from it, export completes it, plans looks at it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, npu:1, ... (default: the best present)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    args = parser.parse_args()
    for name in NEEDS.get(args.stage, ()):
        if getattr(args, name) is None:
            parser.error(f"{args.stage} needs --{name}")
    run(args)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.stage in OUTPUTS:
        OUTPUTS[args.stage](args)
    else:
        train, batch, lr = STAGES[args.stage]
        recipe = Recipe(
            minutes=args.minutes,
            batch=args.batch or batch,
            lr=args.lr or lr,
            device=resolve_device(args.device),
            sizes=args.sizes,
            regions=args.regions,
            edits=args.edits,
            scenes=args.scenes,
            muon_lr=args.muon_lr,
            seed=args.seed,
            start=args.start,
        )
        print(f"{args.stage} on {recipe.device}", flush=True)
        train(args.runs / args.stage, recipe)


if __name__ == "__main__":
    main()
