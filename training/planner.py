"""The planner stage: prompt -> preview grid -> full grid, by next-token prediction with the release's prompt layout.

The full grid's targets are the scene's own codes. The preview's are the same codes enlarged to the preview grid: it
has about 256 tokens whatever the picture's size, far more than a small picture has.
"""

import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..pipeline.config import GenerationConfig
from ..pipeline.generate import decode, prefill
from ..pipeline.geometry import preview_grid
from ..pipeline.prompt import PromptBatch, PromptEncoder, collate
from . import bundle, data, models
from .common import Recipe, Stage, optimisers

SAMPLING = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)


class NoCache:
    """Stands in for the key-value cache where the whole sequence runs at once and gradients are wanted."""

    @staticmethod
    def update(_layer: int, keys, values, _position, _read):
        return keys, values


@cache
def prompt_encoder() -> PromptEncoder:
    """The small checkpoint's own tokenizer and template."""
    with tempfile.TemporaryDirectory() as folder:
        bundle.write_frame(Path(folder))
        return PromptEncoder(Path(folder) / "processor", models.PLANNER_CONFIG)


def enlarge(codes: np.ndarray, h: int, w: int) -> np.ndarray:
    """(a, b) codes -> (h, w) by nearest neighbour."""
    rows = np.arange(h) * codes.shape[0] // h
    columns = np.arange(w) * codes.shape[1] // w
    return codes[rows][:, columns]


def prompt_batch(scenes: list[data.Scene], preview: bool) -> PromptBatch:
    """The prompts of scenes of one size, as the pipeline gives them to the planner."""
    size = scenes[0].codes.shape
    small = preview_grid(*size) if preview else None
    encoder = prompt_encoder()
    return collate([encoder.encode(s.prompt, size, small) for s in scenes], size, small, models.PLANNER_CONFIG)


def to_sequence(scenes: list[data.Scene], preview: bool):
    """Scenes of one size -> ids (B, L + N - 1), positions (3, B, ...), mask (B, ...), targets (B, N), full grid's N."""
    h, w = scenes[0].codes.shape
    batch = prompt_batch(scenes, preview)
    grids = [np.stack([s.codes for s in scenes])]
    if preview:
        grids.insert(0, np.stack([enlarge(s.codes, *preview_grid(h, w)) for s in scenes]))
    targets = torch.from_numpy(np.concatenate([g.reshape(len(scenes), -1) for g in grids], 1))
    ids = torch.cat((batch.ids, targets[:, :-1]), 1)
    positions = torch.cat((batch.positions, batch.decode_positions[..., :-1]), 2)
    mask = F.pad(batch.mask, (0, targets.shape[1] - 1), value=True)
    return ids, positions, mask, targets, h * w


def plan_logits(planner, ids, positions, mask, planned: int) -> torch.Tensor:
    """Teacher-forced logits of the last `planned` tokens: (B, planned, vision vocabulary)."""
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    seen = (seen & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=ids.device)  # padding sees itself
    hidden = planner.model.language_model(ids, *planner.rope_tables(positions), seen[:, None], NoCache, 0, length)
    return planner.lm_head(hidden[:, -planned:])


def train_step(stage: Stage, scenes: list[data.Scene], preview: bool) -> None:
    *sequence, full = to_sequence(scenes, preview)
    device = next(stage.model.parameters()).device
    ids, positions, mask, targets = (tensor.to(device) for tensor in sequence)
    logits = plan_logits(stage.model, ids, positions, mask, targets.shape[1])
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = losses[:, -full:].mean() + (losses[:, :-full].mean() if preview else 0)
    hits = (logits.argmax(-1) == targets)[:, -full:].float()
    figures = {"full": losses[:, -full:].mean(), "grids": hits.amin(1).mean()}
    if preview:
        figures["preview"] = losses[:, :-full].mean()
    stage.update(loss, **figures)


def is_plan_of(codes: np.ndarray, texts: list[str]) -> bool:
    """Whether every text has one unbroken line of tokens of its length, and nothing else is lettered."""
    found = []
    for row in codes:
        runs = [data.code_slot(int(code)) for code in row]
        i = 0
        while i < len(runs):
            if runs[i] is None:
                i += 1
                continue
            length, index = runs[i]
            count = (length + 1) // 2
            if index or [r for r in runs[i : i + count]] != [(length, j) for j in range(count)]:
                return False
            found.append(length)
            i += count
    return sorted(found) == sorted(len(text) for text in texts)


def sample_plans(planner, scenes: list[data.Scene], seed: int = 0) -> np.ndarray:
    """Plan the prompts of scenes of one size as the pipeline does: (B, h, w) codes."""
    prefix = prefill(planner, prompt_batch(scenes, preview=True), next(planner.parameters()).device)
    grids = decode(planner, prefix, SAMPLING, range(seed, seed + len(scenes)))
    return grids["full"].numpy().reshape(len(scenes), *scenes[0].codes.shape)


def train(folder: Path, recipe: Recipe) -> None:
    """Train or go on training until `minutes` in all are spent; the first quarter goes without previews."""
    torch.manual_seed(recipe.seed)
    model = models.planner().to(recipe.device)
    for part in (model.model.visual, model.model.vqmodel):
        part.requires_grad_(False)
    stage = Stage(folder, model, optimisers(model, "model.language_model.layers", recipe), recipe.minutes)
    rng = random.Random(recipe.seed + stage.step)
    grids = data.parse_sizes(recipe.sizes)
    while stage.running():
        h, w, _ = rng.choices(grids, [weight for *_, weight in grids])[0]
        preview = stage.progress > 0.25 and rng.random() < 0.8
        count = recipe.batch if preview else 3 * recipe.batch
        scenes = data.draw_scenes(rng, h, w, count, recipe.regions)
        train_step(stage, scenes, preview)
        if stage.step % 500 == 0 and stage.progress > 0.3:
            h, w, _ = grids[stage.step // 500 % len(grids)]
            scenes = data.held_scenes(32, h, w)
            plans = sample_plans(stage.ema, scenes)
            right = [is_plan_of(codes, scene.texts) for codes, scene in zip(plans, scenes)]
            stage.log({"plans": sum(right) / len(right), "grid": [h, w]})
