"""Every setting of a denoising run, checked when made: a wrong one costs neither a weight nor a plan."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..errors import InputError
from ..plan import SEEDS
from ..text import check_texts, shown
from .approximations import Approximations

GLYPH_MODES = ("reference", "prompt_order")
CFG_BATCHING = ("auto", "batched", "sequential")

Glyphs = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class DenoiseOptions:
    """How a plan is denoised; raises `InputError` when made for a value that is not accepted.

    Row k of the noise is sampled from seed + k, on the CPU. The texts to render are `glyph_texts` (one list for all
    rows, or one a row), else the prompt's quoted strings: `glyph_mode` "reference" finds them exactly as diffusers
    does, its faults included, and is the default because the decoder was trained with it and results can be compared;
    "prompt_order" reads apostrophes and all quote styles. Guidance steers away from `negative_glyph_texts` (none); a
    scale of 1 leaves it out. `guidance_interval` (two shares of the steps) and `step_cache` (a threshold) give another
    image in less time, see `Approximations`. `guidance_batching` says how the two passes of guidance run: "batched" as
    one batch, "sequential" one after the other, "auto" what suits device and memory; the image is the same up to
    rounding.
    """

    steps: int = 50
    guidance_scale: float = 1.5
    seed: int = 0
    glyph_texts: Glyphs | None = None
    negative_glyph_texts: Sequence[str] | None = None
    glyph_mode: str = "reference"
    guidance_interval: tuple[float, float] | None = None
    step_cache: float | None = None
    guidance_batching: str = "auto"

    def __post_init__(self):
        _check_whole("steps", self.steps, 1)
        _check_whole("seed", self.seed)
        if self.seed not in SEEDS:
            raise InputError(f"seed {shown(self.seed)} is not accepted; use a whole number from 0 to 2^64 - 1")
        _check_scale(self.guidance_scale)
        _check_texts("glyph_texts", self.glyph_texts, nested=True)
        _check_texts("negative_glyph_texts", self.negative_glyph_texts, nested=False)
        _check_choice("glyph_mode", self.glyph_mode, GLYPH_MODES)
        _check_choice("guidance_batching", self.guidance_batching, CFG_BATCHING)
        self.approximations.check()
        if self.guidance_batching == "batched" and self.step_cache is not None:
            raise InputError(
                "a step cache follows each pass of guidance alone; use guidance batching auto or sequential"
            )

    @classmethod
    def of(cls, **settings) -> "DenoiseOptions":
        """The options of these keywords; an unknown one is an `InputError` that names the nearest."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
                raise InputError(f"{name!r} is no option of denoising; {hint}")
        return cls(**settings)

    @property
    def reads_as_reference(self) -> bool:
        """Whether the prompts' own texts are read as the reference reads them, its tokenizer's names included."""
        return self.glyph_mode == "reference" and self.glyph_texts is None

    @property
    def approximations(self) -> Approximations:
        return Approximations(self.guidance_interval, self.step_cache)


def _check_whole(name: str, value: int, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" from {least}"
        raise InputError(f"{name} {shown(value)} is not usable; give a whole number{bound}")


def _check_scale(scale: float) -> None:
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not 1 <= scale < math.inf:
        raise InputError(f"guidance_scale {shown(scale)} is not accepted; use 1 (off) or more, such as 1.5")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(
            f"{name.replace('guidance_', 'guidance ')} {shown(value)} is not known; use {', '.join(choices)}"
        )


def _check_texts(name: str, given, nested: bool) -> None:
    """A list of strings, or with `nested` a list of such lists; a bare string would be taken letter by letter."""
    if given is None:
        return
    if isinstance(given, str):
        raise InputError(f"{name} must be a list of strings, got the string {shown(given)}")
    if not isinstance(given, (list, tuple)):
        raise InputError(f"{name} must be a list of strings, got {type(given).__name__}")
    rows = [given] if all(isinstance(text, str) for text in given) else list(given) if nested else [None]
    for row in rows:
        if isinstance(row, str) or not isinstance(row, (list, tuple)) or not all(isinstance(t, str) for t in row):
            wanted = "one list of strings, or one list for each image" if nested else "a list of strings"
            raise InputError(f"{name} must be {wanted}")
        check_texts(row)
