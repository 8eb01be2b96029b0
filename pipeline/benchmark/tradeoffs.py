"""What options that trade exactness for speed gain in time and lose in likeness.

Each image's plan is rendered, from noise to pixels, by the exact run and with every option in turn. Likeness is the
PSNR against the exact image, of the mean squared error of all images; another noise gives what is no likeness.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from ..loading.checkpoint import DECODER
from .timing import interleave

EXACT = "exact"
SETTINGS = {
    EXACT: {},
    "guidance 0 to 0.5": {"guidance_interval": (0.0, 0.5)},
    "guidance 0.1 to 0.8": {"guidance_interval": (0.1, 0.8)},
    "guidance 0.5 to 1": {"guidance_interval": (0.5, 1.0)},
    "step cache 0.05": {"step_cache": 0.05},
    "step cache 0.1": {"step_cache": 0.1},
    "step cache 0.2": {"step_cache": 0.2},
}
OTHER_NOISE = "exact, other noise"
PROMPTS = (  # in the words of the bundled checkpoint
    'a blue poster that says "HELLO" in white',
    'a red sign that says "OPEN" in yellow',
    'a green card that says "SALE" in black, a white star',
    'a white banner that says "JUMP" in purple at the top',
)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Tradeoff:
    """One setting on all images: seconds of one, from noise to pixels; dB, None where nothing differs.

    `ratio` is the exact run's time over the setting's, `worst` the PSNR of the image that changed most.
    """

    setting: str
    size: str
    steps: int
    pictures: int
    seconds: float
    ratio: float
    psnr: float | None
    worst: float | None

    def as_json(self) -> dict:
        return asdict(self)


def measure(model, height: int, width: int, steps: int, repeats: int, limit: float) -> Iterator[Tradeoff]:
    """Every setting on every image; a setting's time is the mean of each image's median."""
    seconds = {name: [] for name in SETTINGS}
    errors = {name: [] for name in (*SETTINGS, OTHER_NOISE)}
    for prompt in PROMPTS:
        for seed in SEEDS:
            plan = model.plan(prompt, height, width, seed=seed)
            calls = [partial(render, model, plan, steps, seed, options) for options in SETTINGS.values()]
            images = [call() for call in calls]  # warms up too
            images.append(render(model, plan, steps, seed + len(SEEDS), {}))
            for name, image in zip(errors, images):
                errors[name].append((image - images[0]).square().mean().item())
            for name, sample in zip(seconds, interleave(calls, model.placement.devices[DECODER], repeats, limit)):
                seconds[name].append(sample.median)
    seconds[OTHER_NOISE] = seconds[EXACT]
    mean = {name: sum(values) / len(values) for name, values in seconds.items()}
    for name, squares in errors.items():
        whole, worst = psnr(sum(squares) / len(squares)), psnr(max(squares))
        ratio = mean[EXACT] / mean[name]
        yield Tradeoff(name, f"{width}x{height}", steps, len(squares), mean[name], ratio, whole, worst)


def render(model, plan, steps: int, seed: int, options: dict) -> torch.Tensor:
    """A plan's image, (1, H, W, 3) in 0..1."""
    return model.decode(model.denoise(plan, steps, seed=seed, **options))


def psnr(error: float) -> float | None:
    """Decibels of a mean squared error between images in 0..1; None for no error."""
    return -10 * math.log10(error) if error else None


def header() -> str:
    return f"{'setting':20} {'size':>9} {'steps':>5} {'images':>8} {'time':>10} {'speed':>7} {'PSNR':>8} {'worst':>8}"


def row(result: Tradeoff) -> str:
    decibels = " ".join(f"{'same' if db is None else f'{db:.1f} dB':>8}" for db in (result.psnr, result.worst))
    return (
        f"{result.setting:20} {result.size:>9} {result.steps:5} {result.pictures:8} "
        f"{result.seconds * 1e3:7.0f} ms {result.ratio:6.2f}x {decibels}"
    )
