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
from torch import nn

from ..pipeline.geometry import preview_grid
from ..pipeline.models.config import GenerationConfig
from ..pipeline.planning.generate import decode, prefill
from ..pipeline.planning.prompt import PromptBatch, PromptEncoder, collate
from . import bundle, data, models
from .common import Recipe, Stage, optimisers

SAMPLING = GenerationConfig(temperature=0.9, top_p=1.0, top_k=0)
WITHOUT_PREVIEW = 0.25  # share of the time: steps without the preview grid cost a fifth and teach what prompts mean
MODES, LATE_SHARES = ("plain", "skipped", "preview"), (1, 4, 5)
PREVIEW_WEIGHT = 0.5
AUX_LAYER = 1  # the auxiliary heads read this layer's output
AUX_WEIGHT = 0.3
UNMARKED = -100  # cross_entropy ignores it
ROWS = 2 * data.MAX_WORD  # classes before it: index in the quoted word, then the word's length at its closing quote
SIDE = 40  # most rows or columns of a grid


class PlannerModel(nn.Module):
    """The planner, and two heads that exist in training only: how far in a quoted word or a grid a token stands.

    Counting letters and rows is what the planner is slowest to find out from plans alone.
    """

    def __init__(self):
        super().__init__()
        self.planner = models.planner()
        width = models.PLANNER_CONFIG.text_config.hidden_size
        self.place = nn.Linear(width, ROWS + SIDE)
        self.column = nn.Linear(width, SIDE)
        for part in (self.planner.model.visual, self.planner.model.vqmodel):
            part.requires_grad_(False)


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


def to_sequence(scenes: list[data.Scene], mode: str, mistakes: float = 0.0):
    """Scenes of one size -> ids (B, T), positions (3, B, T), mask (B, T), places (2, B, T), targets (B, N), full grid.

    T is the prompt and all planned tokens but the last; the full grid is the last h*w of N targets. `mode` "plain" has
    no preview grid, "preview" has; "skipped" has all but the last token of it cut out, at a fifth of the cost: the
    full grid stands where it does after a preview. `mistakes` is the share of wrong preview tokens that are read.
    """
    h, w = scenes[0].codes.shape
    batch = prompt_batch(scenes, mode != "plain")
    targets = torch.from_numpy(np.stack([s.codes.reshape(-1) for s in scenes]))
    before = 0
    if mode != "plain":
        preview = torch.from_numpy(np.stack([enlarge(s.codes, *preview_grid(h, w)).reshape(-1) for s in scenes]))
        targets = torch.cat((preview, targets), 1)
        before = preview.shape[1]
    start = before - 1 if mode == "skipped" else 0
    read = torch.cat((mistaken(targets[:, :before], mistakes), targets[:, before:]), 1)
    ids = torch.cat((batch.ids, read[:, start:-1]), 1)
    positions = torch.cat((batch.positions, batch.decode_positions[..., start:-1]), 2)
    mask = F.pad(batch.mask, (0, ids.shape[1] - batch.ids.shape[1]), value=True)
    length, places = batch.ids.shape[1], mark_places(batch.ids, batch.grids)
    places = torch.cat((places[..., :length], places[..., length + start :]), 2)
    return ids, positions, mask, places, targets[:, before if mode == "skipped" else 0 :], h * w


def mistaken(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """(B, N) tokens, a share of them replaced by others of the same row: the planner must survive its own mistakes."""
    others = tokens[:, torch.randperm(tokens.shape[1])]
    return torch.where(torch.rand(tokens.shape) < share, others, tokens)


def mark_places(ids: torch.Tensor, grids) -> torch.Tensor:
    """Prompt ids (B, L) and the grids that follow -> (2, B, L + N - 1) classes of both heads."""
    prompts = torch.tensor([_prompt_places(row) for row in ids.tolist()])
    rows = torch.cat([torch.arange(h * w) // w for h, w in grids])
    columns = torch.cat([torch.arange(h * w) % w for h, w in grids])
    # A token is marked with the place of the one it predicts: the last of the prompt predicts the first of the plan.
    rows = torch.cat((prompts[:, :-1], ROWS + rows.expand(len(ids), -1)), 1)
    columns = F.pad(columns.expand(len(ids), -1), (ids.shape[1] - 1, 0), value=UNMARKED)
    return torch.stack((rows, columns))


def _prompt_places(ids: list[int]) -> list[int]:
    """Class of every prompt token: letters and closing quotes are marked."""
    marks, quote, count = [], None, 0
    for token in ids:
        character = _characters().get(token)
        mark = UNMARKED
        if quote is None and character in ('"', "'"):
            quote, count = character, 0
        elif quote is not None and character == quote:
            mark, quote = data.MAX_WORD + count - 1, None
        elif quote is not None:
            mark, count = count, count + 1
        marks.append(mark)
    return marks


@cache
def _characters() -> dict[int, str]:
    """Token id -> ASCII character, for the tokens that are one."""
    tokens = prompt_encoder().tokenizer.get_vocab()
    return {index: token for token, index in tokens.items() if len(token) == 1 and token.isascii()}


def run_planner(planner, ids, positions, mask, planned: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced logits of the last `planned` tokens (B, planned, vocabulary), and hidden states for the heads."""
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    seen = (seen & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=ids.device)  # padding sees itself
    language, middle = planner.model.language_model, []
    hook = language.layers[AUX_LAYER].register_forward_hook(lambda _module, _input, out: middle.append(out))
    hidden = language(ids, *planner.rope_tables(positions), seen[:, None], NoCache, 0, length)
    hook.remove()
    return planner.lm_head(hidden[:, -planned:]), middle[0]


def train_step(stage: Stage, scenes: list[data.Scene], mode: str, mistakes: float = 0.0) -> None:
    *sequence, full = to_sequence(scenes, mode, mistakes)
    device = next(stage.model.parameters()).device
    ids, positions, mask, places, targets = (tensor.to(device) for tensor in sequence)
    logits, middle = run_planner(stage.model.planner, ids, positions, mask, targets.shape[1])
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    counting = sum(
        F.cross_entropy(head(middle).flatten(0, 1), place.flatten(), ignore_index=UNMARKED)
        for head, place in zip((stage.model.place, stage.model.column), places)
    )
    loss = losses[:, -full:].mean() + AUX_WEIGHT * counting
    hits = (logits.argmax(-1) == targets)[:, -full:].float()
    figures = {"full": losses[:, -full:].mean(), "grids": hits.amin(1).mean(), "counting": counting}
    if mode == "preview":
        figures["preview"] = losses[:, :-full].mean()
        loss = loss + PREVIEW_WEIGHT * figures["preview"]
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


def sample_plans(planner, scenes: list[data.Scene], preview: bool, seed: int = 0) -> np.ndarray:
    """Plan the prompts of scenes of one size as the pipeline does: (B, h, w) codes."""
    prefix = prefill(planner, prompt_batch(scenes, preview), next(planner.parameters()).device)
    grids = decode(planner, prefix, SAMPLING, range(seed, seed + len(scenes)))
    return grids["full"].numpy().reshape(len(scenes), *scenes[0].codes.shape)


def train(folder: Path, recipe: Recipe) -> None:
    """Train or go on training until `minutes` in all are spent; previews come late."""
    torch.manual_seed(recipe.seed)
    model = PlannerModel().to(recipe.device)
    blocks = "planner.model.language_model.layers"
    stage = Stage(folder, model, optimisers(model, blocks, recipe), recipe.minutes)
    rng = random.Random(recipe.seed + stage.step)
    grids = data.parse_sizes(recipe.sizes)
    while stage.running():
        h, w, _ = rng.choices(grids, [weight for *_, weight in grids])[0]
        late = stage.progress > WITHOUT_PREVIEW
        mode = rng.choices(MODES, LATE_SHARES)[0] if late else "plain"
        count = recipe.batch if mode == "preview" else 3 * recipe.batch
        mistakes = rng.choice((0.0, 0.1, 0.3))
        train_step(stage, data.draw_scenes(rng, h, w, count, recipe.regions), mode, mistakes)
        if stage.step % 500 == 0:
            h, w, _ = grids[stage.step // 500 % len(grids)]
            scenes = data.held_scenes(32, h, w)
            plans = sample_plans(stage.ema.planner, scenes, late)
            right = [is_plan_of(codes, scene.texts) for codes, scene in zip(plans, scenes)]
            stage.log({"plans": sum(right) / len(right), "grid": [h, w]})
