"""Every setting of a LoRA's training, checked when made: a wrong one costs neither a weight nor an image."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from ...pipeline.errors import InputError
from ...pipeline.geometry import MAX_SIDE, TOKEN
from ...pipeline.loading import HUB_ID
from ...pipeline.loading.checkpoint import DECODER, PLANNER
from ...pipeline.text import check_prompt, shown

COMPONENTS = {"planner": PLANNER, "decoder": DECODER}
# Linear layers that can be adapted, by the names of transformers' and diffusers' modules.
ATTENTION = {
    "planner": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "decoder": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
}
FEED_FORWARD = {"planner": ("gate_up_proj", "down_proj"), "decoder": ("ff.net.0.proj", "ff.net.2")}
SCHEDULES = ("cosine", "constant")
SEED_LIMIT = 2**31
# What may change when a run goes on: where and how it runs, how long, and what is shown on the way.
MAY_CHANGE = {
    "out",
    "device",
    "steps",
    "save_every",
    "samples",
    "sample_every",
    "sample_steps",
    "checkpointing",
    "keep_layers",
    "anyway",
}


@dataclass(frozen=True)
class LoraSettings:
    """What to train and how; raises `InputError` when made for a value that is not accepted.

    `component` is "planner" or "decoder", `data` a folder of images with captions, `out` the folder that is written.
    `pixels` is about how many an image has (None: its own). The adapter counts `alpha` / `rank` while it is trained
    (None: 1), at every layer of `targets`: "attention", "all" or names of layers with commas. A step reads `accumulate`
    batches of `batch` images. `drop` is the share of images whose plan and texts the decoder does not get, so that
    guidance goes on working. Layers are recomputed in the backward pass, except `keep_layers` (None: as many as memory
    has room for), or all with `checkpointing` off. `anyway` starts even where memory seems too small.
    """

    component: str
    data: Path
    out: Path
    model: str = HUB_ID
    revision: str | None = None
    rank: int = 16
    alpha: float | None = None
    targets: str = "attention"
    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 20
    weight_decay: float = 0.0
    drop: float = 0.1
    pixels: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    checkpointing: bool = True
    keep_layers: int | None = None
    save_every: int = 50
    samples: tuple[str, ...] = ()
    sample_every: int = 250
    sample_steps: int = 20
    anyway: bool = False

    def __post_init__(self):
        if self.component not in COMPONENTS:
            raise InputError(f"component {shown(self.component)} is not known; use {' or '.join(COMPONENTS)}")
        for name in ("rank", "steps", "batch", "accumulate", "save_every", "sample_every", "sample_steps"):
            _check_whole(name, getattr(self, name), 1, 1 << 24)
        if self.keep_layers is not None:
            _check_whole("keep_layers", self.keep_layers, 0, 1 << 24)
        if self.keep_layers and not self.checkpointing:
            raise InputError(
                f"--no-checkpointing keeps all layers, --keep-layers {self.keep_layers}; leave one of them out"
            )
        _check_whole("warmup", self.warmup, 0, 1 << 24)
        _check_whole("seed", self.seed, 0, SEED_LIMIT - 1)
        if self.pixels is not None:
            _check_whole("pixels", self.pixels, TOKEN * TOKEN, MAX_SIDE * MAX_SIDE)
        _check_number("lr", self.lr, 0, 1, lowest_too=False)
        _check_number("weight_decay", self.weight_decay, 0, 1)
        _check_number("drop", self.drop, 0, 1)
        if self.alpha is not None:
            _check_number("alpha", self.alpha, 0, 1 << 16, lowest_too=False)
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule {shown(self.schedule)} is not known; use {' or '.join(SCHEDULES)}")
        for prompt in self.samples:
            check_prompt(prompt)
        _ = self.layers

    @property
    def folder(self) -> str:
        """The component's folder in a checkpoint."""
        return COMPONENTS[self.component]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers to adapt."""
        attention, both = ATTENTION[self.component], ATTENTION[self.component] + FEED_FORWARD[self.component]
        if self.targets in ("attention", "all"):
            return attention if self.targets == "attention" else both
        names = tuple(name.strip() for name in self.targets.split(","))
        unknown = [name for name in names if name not in both]
        if unknown:
            raise InputError(
                f"{shown(unknown[0])} is no layer of the {self.component} that can be adapted; "
                f"use attention, all, or some of {','.join(both)}"
            )
        return tuple(dict.fromkeys(names))

    @property
    def scale(self) -> float:
        """How much the adapter's product counts while it is trained."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant":
            return self.lr * warm
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

    @property
    def identity(self) -> dict:
        """The settings that make a run what it is, as JSON has them."""
        return {
            name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items() if name not in MAY_CHANGE
        }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_whole(name: str, value, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InputError(
            f"{_option(name)} {shown(value)} is not accepted; use a whole number from {lowest} to {highest}"
        )


def _check_number(name: str, value, lowest: float, highest: float, lowest_too: bool = True) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not lowest <= value <= highest or (value == lowest and not lowest_too):
        above = "from" if lowest_too else "above"
        raise InputError(f"{_option(name)} {shown(value)} is not accepted; use a number {above} {lowest} to {highest}")
