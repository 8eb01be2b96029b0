"""The planner stage: prompt -> preview grid -> full grid, by next-token prediction with the release's prompt layout.

The full grid's targets are the scene's own codes. The preview's are the same codes enlarged to the preview grid: it
has about 256 tokens whatever the picture's size, far more than a small picture has.
"""

import random
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..pipeline.geometry import preview_grid
from ..pipeline.models.config import GenerationConfig
from ..pipeline.planning.generate import decode
from ..pipeline.planning.prefill import prefill
from ..pipeline.planning.prompt import PromptBatch, PromptEncoder, collate
from . import bundle, data, edits, models, panel_scenes
from .common import Recipe, Stage, optimisers, read_component, read_meta
from .lora.layers import NoCache

SAMPLING = GenerationConfig(temperature=0.9, top_p=1.0, top_k=0)
WITHOUT_PREVIEW = 0.25  # share of the time: steps without the preview grid cost a fifth and teach what prompts mean
MODES, LATE_SHARES = ("plain", "skipped", "preview"), (1, 4, 5)
COPY_WEIGHT = 0.1  # preview tokens that repeat the row above, of which a plan has three in four
CENTRED = 0.92  # share of lines in the middle: what a prompt leaves open is what sampling gets wrong
WITH_PREVIEW = ("skipped", "preview")
AUX_LAYER = 1  # the auxiliary heads read this layer's output
AUX_WEIGHT, AUX_WEIGHT_STARTED = 0.3, 0.1  # a started planner counts already; fresh heads would only disturb it
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
    encoder, config = prompt_encoder(), models.PLANNER_CONFIG
    encoded = [encoder.encode(s.prompt, size, small, [p.size for p in s.references]) for s in scenes]
    batch = collate(encoded, size, small, config)
    references = [torch.from_numpy(picture.codes.reshape(-1)) for s in scenes for picture in s.references]
    if not references:
        return batch
    ids = batch.ids.masked_scatter(batch.ids == config.image_token_id, torch.cat(references))
    return replace(batch, ids=ids)


def to_sequence(scenes: list[data.Scene], mode: str, mistakes: float = 0.0):
    """Scenes of one size -> ids (B, T), positions (3, B, T), mask (B, T), places (2, B, T), targets (B, N), full grid.

    T is the prompt, its references and all planned tokens but the last; the full grid is the last h*w of N targets.
    `mode` "plain" and "edit" have no preview grid, "preview" has; "skipped" has all but the last token of it cut out,
    at a fifth of the cost: the full grid stands where it does after a preview. `mistakes` is the share of wrong
    preview tokens that are read.
    """
    h, w = scenes[0].codes.shape
    batch = prompt_batch(scenes, mode in WITH_PREVIEW)
    targets = torch.from_numpy(np.stack([s.codes.reshape(-1) for s in scenes]))
    before = 0
    if mode in WITH_PREVIEW:
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
    """Prompt ids (B, L) and the grids that follow -> (2, B, L + N - 1) classes of both heads.

    References are as large as the full grid, the last of `grids`.
    """
    prompts, beside = _mark_references(ids, torch.tensor([_prompt_places(row) for row in ids.tolist()]), grids[-1])
    rows = torch.cat([torch.arange(h * w) // w for h, w in grids])
    columns = torch.cat([torch.arange(h * w) % w for h, w in grids])
    # A token is marked with the place of the one it predicts: the last of the prompt predicts the first of the plan.
    rows = torch.cat((prompts[:, :-1], ROWS + rows.expand(len(ids), -1)), 1)
    columns = torch.cat((beside[:, :-1], columns.expand(len(ids), -1)), 1)
    return torch.stack((rows, columns))


def _mark_references(ids: torch.Tensor, places: torch.Tensor, grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and classes of the first head (B, L) -> classes of both, with a row and column for each token seen."""
    h, w = grid
    seen = ids < data.CODEBOOK
    index = (seen.cumsum(1) - 1) % (h * w)
    return torch.where(seen, ROWS + index // w, places), torch.where(seen, index % w, UNMARKED)


def _prompt_places(ids: list[int]) -> list[int]:
    """Class of every prompt token: letters by their index, what follows a quoted word by the word's length."""
    marks, quote, count, length = [], None, 0, UNMARKED
    for token in ids:
        character = _characters().get(token)
        mark = length
        if quote is None and character in ('"', "'"):
            quote, count, mark, length = character, 0, UNMARKED, UNMARKED
        elif quote is not None and (character == quote or token == _space()):
            mark = length = data.MAX_WORD + count - 1
            quote, count = (None if character == quote else quote), 0
        elif quote is not None:
            mark, count = count, count + 1
        marks.append(mark)
    return marks


@cache
def _space() -> int:
    """The id of the space between two words of a quoted text."""
    return prompt_encoder().tokenizer.token_to_id("Ġ")


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


def train_step(
    stage: Stage, scenes: list[data.Scene], mode: str, mistakes: float = 0.0, aux: float = AUX_WEIGHT
) -> None:
    *sequence, full = to_sequence(scenes, mode, mistakes)
    device = next(stage.model.parameters()).device
    ids, positions, mask, places, targets = (tensor.to(device) for tensor in sequence)
    logits, middle = run_planner(stage.model.planner, ids, positions, mask, targets.shape[1])
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    counting = sum(
        F.cross_entropy(head(middle).flatten(0, 1), place.flatten(), ignore_index=UNMARKED)
        for head, place in zip((stage.model.place, stage.model.column), places)
    )
    loss = losses[:, -full:].mean() + aux * counting
    hits = (logits.argmax(-1) == targets)[:, -full:].float()
    whole = hits.amin(1).mean()
    figures = {"counting": counting}
    figures |= {"edits": whole} if mode == "edit" else {"full": losses[:, -full:].mean(), "grids": whole}
    if mode == "preview":
        figures["preview"] = losses[:, :-full].mean()
        weight = decision_weights(scenes[0].codes.shape).to(device)
        loss = loss + (losses[:, :-full] * weight).sum(1).mean() / full
    stage.update(loss, **figures)


@cache
def decision_weights(size: tuple[int, int]) -> torch.Tensor:
    """(N,) weights of the preview of (h, w) tokens; those that a plan decides, the first of each row, sum to h*w."""
    h, w = size
    rows, columns = preview_grid(h, w)
    source = torch.arange(rows) * h // rows
    first = F.pad(source[1:] != source[:-1], (1, 0), value=True)
    weight = torch.where(first, 1.0, COPY_WEIGHT) * w / columns
    return weight.repeat_interleave(columns)


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
    model = PlannerModel()
    if recipe.start and not read_meta(folder):
        model.planner.load_state_dict(read_component(recipe.start, "vision_language_encoder"))
    model.to(recipe.device)
    blocks = "planner.model.language_model.layers"
    stage = Stage(folder, model, optimisers(model, blocks, recipe), recipe.minutes)
    rng = random.Random(recipe.seed + stage.step)
    grids, aux = data.parse_sizes(recipe.sizes), AUX_WEIGHT_STARTED if recipe.start else AUX_WEIGHT
    while stage.running():
        h, w, _ = rng.choices(grids, [weight for *_, weight in grids])[0]
        early = not recipe.start and stage.progress < WITHOUT_PREVIEW  # a trained planner would forget its previews
        mode = "plain" if early else rng.choices(MODES, LATE_SHARES)[0]
        mode = "edit" if rng.random() < recipe.edits else mode
        count = recipe.batch if mode == "preview" else 3 * recipe.batch
        mistakes = rng.choice((0.0, 0.1, 0.3))
        if mode == "edit":
            drawn = edits.draw_edits(rng, h, w, count)
        elif rng.random() < recipe.scenes:
            drawn = panel_scenes.draw_scenes(rng, count)
        else:
            drawn = data.draw_scenes(rng, h, w, count, recipe.regions, CENTRED)
        train_step(stage, drawn, mode, mistakes, aux)
        if stage.step % 500 == 0:
            h, w, _ = grids[stage.step // 500 % len(grids)]
            log_plans(stage, h, w)


def log_plans(stage: Stage, h: int, w: int) -> None:
    """Log how many plans are right without a preview, which are cheap."""
    figures = {f"plans{n}": plans_right(stage.ema.planner, h, w, n) for n in range(1, min(4, h) + 1)}
    figures["edited"] = edits_right(stage.ema.planner, h, w)
    figures["scenes"] = scenes_right(stage.ema.planner)
    stage.log({**figures, "grid": [h, w]})


def plans_right(planner, h: int, w: int, regions: int, count: int = 32, preview: bool = False) -> float:
    """Share of right plans of held-out prompts of `regions` words."""
    scenes = data.held_scenes(count, h, w, regions)
    plans = sample_plans(planner, scenes, preview)
    return sum(is_plan_of(codes, scene.texts) for codes, scene in zip(plans, scenes)) / count


def edits_right(planner, h: int, w: int, count: int = 32) -> float:
    """Share of edits of pictures of held-out words whose every token is right."""
    rng, kinds = random.Random(7), tuple(edits.KINDS)
    scenes = [edits.draw_edit(rng, h, w, rng.choice(kinds), data.held_word).scene for _ in range(count)]
    plans = sample_plans(planner, scenes, preview=False)
    return sum(bool((codes == scene.codes).all()) for codes, scene in zip(plans, scenes)) / count


def scenes_right(planner, count: int = 16) -> float:
    """Share of scenes of 256 px with held-out words whose every token is right."""
    rng = random.Random(7)
    drawn = panel_scenes.draw_scenes(rng, count, data.held_word)
    plans = sample_plans(planner, drawn, preview=False)
    return sum(bool((codes == scene.codes).all()) for codes, scene in zip(plans, drawn)) / count


def print_plans(checkpoint: Path, count: int = 64) -> None:
    """A checkpoint's share of right plans, made as the pipeline makes them, and of right edits: a minute, no OCR."""
    model = models.planner().eval()
    model.load_state_dict(read_component(checkpoint, "vision_language_encoder"))
    for regions, (h, w) in ((1, (3, 6)), (2, (3, 6)), (3, (3, 6)), (4, (4, 6))):
        print(
            f"{regions} words on {h}x{w} tokens: {plans_right(model, h, w, regions, count, preview=True):.3f}",
            flush=True,
        )
    print(f"edits on 3x6 tokens: {edits_right(model, 3, 6, count):.3f}", flush=True)
    print(f"scenes of 256 px: {scenes_right(model, count):.3f}", flush=True)
