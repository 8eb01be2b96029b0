"""What is asked of an engine: one picture, checked before anything is sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..geometry import check_size
from ..text import enclosed, quoted_texts, utf8

MAX_REFERENCES = 8
MAX_SEED = 2**32 - 1  # every engine takes this much
MAX_STEPS, MAX_GUIDANCE = 200, 20.0  # limits of the images form of vLLM-Omni
QUOTES = ('""', "“”", "「」")  # the engines find texts between these, whatever stands in them


@dataclass(frozen=True)
class PictureRequest:
    """`references` are PNG files. None leaves a setting to the server."""

    prompt: str
    width: int
    height: int
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    references: tuple[bytes, ...] = field(default=(), repr=False)

    def __post_init__(self):
        _check_prompt(self.prompt)
        check_size(self.height, self.width)
        _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("steps", self.steps, 1, MAX_STEPS)
        _check_range("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        if len(self.references) > MAX_REFERENCES:
            raise InputError(f"{len(self.references)} reference images; at most {MAX_REFERENCES} are sent")

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def settings(self) -> dict:
        """Steps, guidance and seed under the names that all engines share, without those left to the server."""
        values = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "seed": self.seed}
        return {name: value for name, value in values.items() if value is not None}


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("the prompt is empty; describe the picture, with the texts to draw in quotes")
    utf8(prompt)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} {value} is out of range; use {low} to {high}")


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
