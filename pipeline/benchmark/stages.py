"""Every stage of an image, what it depends on, and the cases that are worth measuring."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from . import decoder_stages as decoder
from . import planner_stages as planner
from .case import Bench, Case, Stage

TOKENS = (64, 128, 256, 512, 1024)  # of a plan whose growth is measured
SIDES = ((128, 128), (256, 256), (384, 384), (512, 512), (768, 768))  # pixels
BY_TOKENS, BY_PIXELS = ("planner decode",), ("decoder step", "vae decode")
GROWING = BY_TOKENS + BY_PIXELS
LARGEST = 1024  # pixels; a plan of this side has more tokens than are asked for


@dataclass(frozen=True)
class Entry:
    """A stage's component and maker, and whether size and batch make a difference to it."""

    component: str
    make: Callable[[Bench, Case], Stage]
    by_size: bool = True
    by_batch: bool = True


STAGES = {
    "planner prefill": Entry(PLANNER, planner.planner_prefill, by_size=False),
    "planner decode": Entry(PLANNER, planner.planner_decode),
    "vision tokenizer": Entry(PLANNER, planner.vision_tokenizer, by_batch=False),
    "glyph encoder": Entry(GLYPH, decoder.glyph_encoder, by_size=False, by_batch=False),
    "decoder prepare": Entry(DECODER, decoder.decoder_prepare),
    "decoder step": Entry(DECODER, decoder.decoder_step),
    "decoder guided": Entry(DECODER, decoder.decoder_guided),
    "decoder joined": Entry(DECODER, decoder.decoder_joined),
    "decoder reference": Entry(DECODER, decoder.decoder_reference),
    "vae encode": Entry(VAE, decoder.vae_encode, by_batch=False),
    "vae decode": Entry(VAE, decoder.vae_decode),
    "vae strips": Entry(VAE, decoder.vae_decode_tiled),
}


def growth_cases(prompt: int, sides: Sequence[tuple[int, int]] | None = None) -> list[tuple[str, Case]]:
    """The planner for each number of tokens, the others for each size."""
    planned = [(name, Case(LARGEST, LARGEST, 1, prompt, tokens)) for name in BY_TOKENS for tokens in TOKENS]
    denoised = [(name, Case(height, width, 1, prompt)) for name in BY_PIXELS for height, width in sides or SIDES]
    return planned + denoised


def distinct(name: str, cases: Iterable[Case]) -> list[Case]:
    """Cases that differ for this stage: the first size where sizes do not matter, one image where batches do not."""
    entry, seen = STAGES[name], {}
    for case in cases:
        if not entry.by_batch:
            case = replace(case, batch=1)
        seen.setdefault((entry.by_size and case.size, case.batch), case)
    return list(seen.values())
