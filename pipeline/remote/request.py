"""What is asked of an engine: one image, checked before anything is sent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..errors import CheckpointError, InputError
from ..geometry import check_size, patch_count, preview_grid, token_grid
from ..text import check_prompt, enclosed, quoted_texts, shown
from .limits import MAX_GUIDANCE, MAX_REFERENCES, MAX_SEED, MAX_STEPS

RELEASE_STEPS, RELEASE_GUIDANCE = 50, 1.5  # sent where nothing is asked for: the engines' own defaults differ
RESPONSE_ROOM = 1 << 20
LEAST_PIXELS = 2048 * 2048  # a server may draw larger than asked
QUOTES = ('""', "“”", "「」")  # the engines find texts between these, whatever stands in them


@dataclass(frozen=True)
class PlannerSampling:
    """How the planner draws tokens, for a form that has to be told; as the release's deploy files set it.

    `end_token` is the token that ends a plan.
    """

    temperature: float = 0.9
    top_p: float = 0.75
    top_k: int = 16512
    end_token: int = 16385

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "PlannerSampling":
        """The settings in a checkpoint's `vision_language_encoder/generation_config.json`.

        A key that is missing there keeps the release's value.
        """
        path = folder / "vision_language_encoder" / "generation_config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
            names = {"temperature": float, "top_p": float, "top_k": int}
            found = {name: kind(values[name]) for name, kind in names.items() if name in values}
            end = values.get("eos_token_id", cls.end_token)
            return cls(**found, end_token=int(end[0] if isinstance(end, list) else end))
        except (OSError, ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from None


@dataclass(frozen=True)
class GivenPlan:
    """A plan of one image, for an engine that takes plans: `prior_token_ids` are its tokens of 16 px, row by row."""

    prompt: str
    width: int
    height: int
    prior_token_ids: tuple[int, ...] = field(repr=False)

    def __post_init__(self):
        check_size(self.height, self.width)
        expected = patch_count(self.height, self.width)
        if len(self.prior_token_ids) != expected:
            raise InputError(
                f"a plan of {self.width}x{self.height} has {expected} tokens of 16 px, got {len(self.prior_token_ids)}"
            )


@dataclass(frozen=True)
class ImageRequest:
    """`references` are PNG files. `plan` is drawn as it is, in place of one that the engine samples."""

    product: ClassVar[str] = "image"

    prompt: str
    width: int
    height: int
    seed: int = 0
    steps: int = RELEASE_STEPS
    guidance: float = RELEASE_GUIDANCE
    references: tuple[bytes, ...] = field(default=(), repr=False)
    planner: PlannerSampling = PlannerSampling()
    plan: GivenPlan | None = None

    def __post_init__(self):
        check_prompt(self.prompt)
        check_size(self.height, self.width)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("steps", self.steps, 1, MAX_STEPS)
        _check_range("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        if not isinstance(self.references, (list, tuple)):
            raise InputError(f"references must be a list of PNG files, got {type(self.references).__name__}")
        if len(self.references) > MAX_REFERENCES:
            raise InputError(f"{len(self.references)} reference images; at most {MAX_REFERENCES} are sent")
        if self.plan and self.references:
            raise InputError("a plan holds all that its references gave; send the plan or reference images, not both")
        if self.plan and (self.plan.width, self.plan.height) != (self.width, self.height):
            raise InputError(f"the plan is one of {self.plan.width}x{self.plan.height}, not of {self.size}")

    @property
    def response_limit(self) -> int:
        """Bytes an answer may have: an incompressible PNG of the size asked for, or of 2048x2048, in base64."""
        return RESPONSE_ROOM + max(self.width * self.height, LEAST_PIXELS) * 3 * 3 // 2

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def settings(self) -> dict:
        """Steps, guidance and seed under the names that all engines share."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "seed": self.seed}

    def plan_length(self) -> int:
        """Tokens of a whole plan: the preview grid unless references are edited, the full grid and the end token."""
        h, w = token_grid(self.height, self.width)
        ph, pw = (0, 0) if self.references else preview_grid(h, w)
        return ph * pw + h * w + 1


def _check_range(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise InputError(f"{name} {shown(value)} is out of range; use {low} to {high}")


def with_texts(prompt: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Prompt and texts to draw -> a prompt that quotes them all, and the texts added to it.

    No engine takes texts on their own: each draws what the prompt quotes.
    """
    quoted = quoted_texts(prompt)
    missing = [text for text in texts if text not in quoted]
    if not missing:
        return prompt, []
    words = "the text" if len(missing) == 1 else "the texts"
    return f"{prompt.rstrip()} It shows {words} {', '.join(map(_quote, missing))}.", missing


def _quote(text: str) -> str:
    quoted = enclosed(text, QUOTES)
    if quoted is None:
        raise InputError(f"the text {text!r} holds every kind of quote; the engines cannot draw it")
    return quoted
