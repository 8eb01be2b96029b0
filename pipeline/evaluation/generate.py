"""Images of a benchmark's prompts, resumable: an image that exists is not generated again."""

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..errors import InputError
from ..files import replacing, write_text
from ..images import to_pil
from ..models.config import read_json
from ..progress import Progress
from .prompts import Case

ABLATIONS = {
    "none": "nothing is left out",
    "no-glyphs": "the decoder gets no glyph embeddings",
    "no-plan": "the decoder gets no prior tokens",
    "shuffled-plan": "the plan's tokens in a random order",
}

if TYPE_CHECKING:
    import torch


def generate_images(
    cases: Iterable[Case],
    folder: Path,
    make: Callable[[list[Case], int], list[Image.Image]],
    batch: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `folder/NAME.png` for every case that has none yet.

    `make(some cases of one size, the index of the first)` draws up to `batch` images. What a case looks like does
    not depend on which images existed before: batches are always cut at the same places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = list(cases)
    for start, part in batches(cases, batch):
        missing = [case for case in part if not image_path(folder, case).exists()]
        if missing:
            for case, image in zip(part, make(part, start), strict=True):
                with replacing(image_path(folder, case)) as partial:
                    image.save(partial, format="PNG")
        if progress:
            progress(start + len(part), len(cases), name=part[-1].name)


def batches(cases: list[Case], most: int) -> Iterator[tuple[int, list[Case]]]:
    """(index of the first, neighbouring cases of one size), `most` cases or fewer."""
    start = 0
    for _, group in itertools.groupby(cases, lambda case: (case.height, case.width)):
        same = list(group)
        for i in range(0, len(same), most):
            yield start + i, same[i : i + most]
        start += len(same)


def image_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.png"


def check_settings(folder: Path, settings: dict) -> None:
    """Keep the settings in `settings.json`; refuse to go on with images that were generated with others."""
    path = folder / "settings.json"
    old = read_json(path) if path.exists() else settings
    changed = sorted(key for key in old.keys() | settings.keys() if old.get(key) != settings.get(key))
    if changed:
        pairs = ", ".join(f"{key} {old.get(key)!r}, now {settings.get(key)!r}" for key in changed)
        raise InputError(f"{folder} holds images generated with {pairs}; use another --out, or the same settings")
    write_text(path, json.dumps(settings, indent=2))


def generate_batch(
    model, cases: list[Case], seed: int, *, steps: int, cfg: float, ablation: str = "none"
) -> list[Image.Image]:
    """Images of cases of one size, case k with seed + k, with one part of the model left out if so asked."""
    plan = model.plan([case.prompt for case in cases], cases[0].height, cases[0].width, seed=seed)
    if ablation == "shuffled-plan":
        plan = replace(plan, prior_token_ids_d32=_shuffled(plan.prior_token_ids_d32, seed))
    glyphs = [""] if ablation == "no-glyphs" else [list(case.texts) for case in cases]
    with _prior_off(model.transformer) if ablation == "no-plan" else contextlib.nullcontext():
        latents = model.denoise(plan, steps, cfg, seed, glyph_texts=glyphs)
    return to_pil(model.decode(latents))


def _shuffled(ids: "torch.Tensor", seed: int) -> "torch.Tensor":
    """(B, N) tokens, every row in an order of its own."""
    rng = random.Random(seed)
    return ids.clone().gather(1, ids.new_tensor([rng.sample(range(ids.shape[1]), ids.shape[1]) for _ in ids]))


@contextlib.contextmanager
def _prior_off(decoder: "torch.nn.Module") -> Iterator[None]:
    """Let the decoder see what it sees when prior tokens are dropped: zeros before the prior's projection."""
    handle = decoder.prior_projector.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 0,))
    try:
        yield
    finally:
        handle.remove()
