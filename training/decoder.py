"""The decoder stage: flow matching from noise to the designed latents, given plan tokens and glyphs.

The latents are computed from the scene, so no picture and no autoencoder is needed here. An auxiliary head reads
from a middle layer which character stands in each patch; it exists in training only and makes the model find the
right glyph early, while the picture is still noise.
"""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..pipeline.models.glyph_encoder import glyph_ids
from ..pipeline.models.transformer_context import ReferenceCache
from . import data, drawing, edits, latent, models, panel_scenes
from .common import Recipe, Stage, optimisers, read_component, read_meta

AUX_LAYER = 2  # the aux head reads this block's output
BACKGROUND_WEIGHT = 0.1  # most patches are empty
REFERENCE_NOISE = 0.1  # on latents of references: those of the autoencoder are not exact either
LARGE_SCENES = 4  # in a step, of 64 tokens each
CARDS = 0.6  # share of the steps on scenes that have small cards instead
COMBINED = 0.2  # share of edits that have two references


class DecoderModel(nn.Module):
    """Everything this stage trains."""

    def __init__(self):
        super().__init__()
        self.dit = models.dit()
        self.glyph = models.glyph()
        self.aux = nn.Linear(models.DIT_CONFIG.inner_dim, len(data.ALPHABET) + 1)


def glyph_embeds(glyph: nn.Module, texts: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Strings of a batch -> (B, L, width) embeddings, padded on the left, and their (B, L) mask."""
    device = next(glyph.parameters()).device
    ids, mask = (tensor.to(device) for tensor in byte_ids(texts))
    hidden, counts = glyph(ids, mask), [len(strings) for strings in texts]
    samples = [h[m] for h, m in zip(hidden.split(counts), mask.split(counts))]
    longest = max(map(len, samples))
    embeds = torch.stack([F.pad(s, (0, 0, longest - len(s), 0)) for s in samples])
    real = torch.stack([F.pad(torch.ones(len(s), dtype=torch.bool), (longest - len(s), 0)) for s in samples])
    return embeds, real.to(device)


def byte_ids(texts: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Strings of a batch -> (N, L) byte ids and their boolean mask, N strings in all."""
    rows = [torch.tensor(row) for strings in texts for row in glyph_ids(strings, models.GLYPH_CONFIG)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])


def warm_up_glyphs(glyph: nn.Module, rng: random.Random, steps: int = 400) -> float:
    """Seconds of training that make each glyph output tell its character, its index and the string's length."""
    width = models.GLYPH_CONFIG.d_model
    heads = nn.ModuleList([nn.Linear(width, n) for n in (len(data.ALPHABET), data.MAX_WORD, data.MAX_WORD + 1)])
    optimiser = torch.optim.AdamW([*glyph.parameters(), *heads.parameters()], 3e-3)
    for step in range(steps):
        words = [data.random_word(rng, data.MAX_WORD, plain=0.5) for _ in range(96)]
        texts = [[w.lower() if rng.random() < 0.2 else w] for w in words]
        if step % 3 == 0:  # an even count of strings brings the pad prefix
            texts = [a + b for a, b in zip(texts[::2], texts[1::2])]
        ids, mask = byte_ids(texts)
        hidden = glyph(ids, mask)[mask & (ids > 1)]
        target = torch.tensor([[data.ALPHABET.index(c), i, len(w)] for w in words for i, c in enumerate(w)])
        loss = sum(F.cross_entropy(head(hidden), target[:, i]) for i, head in enumerate(heads))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def shift_mu(h: int, w: int) -> float:
    """The noise schedule's shift for (h, w) tokens."""
    return 0.25 + 0.75 * (4 * h * w / 256) ** 0.5


def sample_noise_levels(b: int, mu: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) sigmas and the unshifted times that go with them; most of them where the picture is still open."""
    sigma = torch.sigmoid(torch.randn(b, generator=generator) * 1.2 + 0.7)
    uniform = torch.rand(b, generator=generator).clamp(min=1e-3)
    sigma = torch.where(torch.rand(b, generator=generator) < 0.3, mu / (mu + 1 / uniform - 1), sigma)
    time = (1000 / (1 + mu * (1 / sigma.clamp(1e-3, 1) - 1))).round().clamp(1, 1000)
    return mu / (mu + 1000 / time - 1), time


def to_batch(scenes: list[data.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scenes of one size -> latents (B, 16, 4h, 4w), prior tokens (B, 2h*2w), characters (B, 2h*2w)."""
    codes = np.stack([s.codes for s in scenes])
    chars = np.stack([s.chars for s in scenes])
    prior = torch.from_numpy(codes.repeat(2, 1).repeat(2, 2)).flatten(1)
    return torch.from_numpy(latent.latents(codes, chars)), prior, torch.from_numpy(chars.repeat(2, 1)).flatten(1)


def write_references(dit: nn.Module, scenes: list[data.Scene], hidden: torch.Tensor, noise: float):
    """What the decoder keeps of the references of scenes that have the same number of them, or None.

    `hidden` (B,) is True for rows that must not see theirs, as the unconditional pass of guidance does not.
    """
    caches = []
    for pictures in zip(*(scene.references for scene in scenes)):
        codes = np.stack([picture.codes for picture in pictures])
        z = torch.from_numpy(latent.latents(codes, np.stack([picture.chars for picture in pictures])))
        z = z + noise * torch.randn(z.shape)
        prior = torch.from_numpy(codes.repeat(2, 1).repeat(2, 2)).flatten(1)
        caches.append(dit.encode_reference(z.to(hidden.device), prior.to(hidden.device)))
    if not caches:
        return None
    joined = ReferenceCache.join(caches)
    return replace(joined, mask=~hidden[:, None].expand(-1, joined.tokens))


def choose_drops(b: int, rng: random.Random) -> tuple[list[bool], torch.Tensor]:
    """Which samples lose their glyphs and which their plan: both in 8 of 100, either alone in 3 of 100."""
    draws = [rng.random() for _ in range(b)]
    glyphs = [d < 0.11 for d in draws]
    return glyphs, torch.tensor([d < 0.08 or 0.11 <= d < 0.14 for d in draws])


def as_typed(word: str, rng: random.Random) -> str:
    """Lettering is always in capitals, however the prompt spells it."""
    return word.lower() if rng.random() < 0.15 else word


def train_step(stage: Stage, scenes: list[data.Scene], rng: random.Random, generator: torch.Generator, aux: float):
    """One flow-matching step on scenes of one size."""
    b, (h, w) = len(scenes), scenes[0].codes.shape
    device = next(stage.model.parameters()).device
    z, prior, chars = (tensor.to(device) for tensor in to_batch(scenes))
    no_glyphs, no_plan = choose_drops(b, rng)
    texts = [[""] if none else [as_typed(t, rng) for t in s.texts] or [""] for none, s in zip(no_glyphs, scenes)]
    no_plan = no_plan.to(device)
    sigma, time = (tensor.to(device) for tensor in sample_noise_levels(b, shift_mu(h, w), generator))
    noise = torch.randn(z.shape, generator=generator).to(device)
    level = sigma.view(-1, 1, 1, 1)
    embeds, real = glyph_embeds(stage.model.glyph, texts)
    drop = no_plan[:, None].expand_as(prior)
    size = (h * data.TOKEN, w * data.TOKEN)
    references = write_references(stage.model.dit, scenes, no_plan, REFERENCE_NOISE)
    noisy = (1 - level) * z + level * noise
    velocity, middle = models.run_dit(
        stage.model.dit, noisy, embeds, real, prior, drop, time - 1, size, AUX_LAYER, references
    )
    flow = F.mse_loss(velocity, noise - z)
    known = torch.tensor([not none for none in no_glyphs], device=device) & ~no_plan
    logits, target = stage.model.aux(middle[known]).flatten(0, 1), chars[known].flatten()
    weight = torch.ones(logits.shape[1], device=device)
    weight[0] = BACKGROUND_WEIGHT
    routing = F.cross_entropy(logits, target, weight=weight)
    lettered = target > 0
    hits = (logits.argmax(1) == target)[lettered].float().mean()
    figures = {"edit flow": flow, "edit routing": hits} if references else {"flow": flow, "routing": hits}
    stage.update(flow + aux * routing, **figures)


@torch.no_grad()
def sample_latents(model, scenes: list[data.Scene], steps: int = 12, seed: int = 0, plan: bool = True) -> torch.Tensor:
    """Draw scenes of one size from their plans with guidance 1: (B, 16, 4h, 4w) latents."""
    b, (h, w) = len(scenes), scenes[0].codes.shape
    device = next(model.parameters()).device
    z, prior, _ = (tensor.to(device) for tensor in to_batch(scenes))
    embeds, real = glyph_embeds(model.glyph, [s.texts or [""] for s in scenes])
    mu = shift_mu(h, w)
    times = torch.linspace(1000, 1, steps + 1)[:-1].trunc()
    sigmas = [*(mu / (mu + 1000 / times - 1)).tolist(), 0.0]
    x = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    drop = torch.full_like(prior, not plan, dtype=torch.bool)
    references = write_references(model.dit, scenes, torch.zeros(b, dtype=torch.bool, device=device), noise=0.0)
    for i, t in enumerate(times):
        size = (h * data.TOKEN, w * data.TOKEN)
        now = (t - 1).expand(b).to(device)
        v, _ = models.run_dit(model.dit, x, embeds, real, prior, drop, now, size, AUX_LAYER, references)
        x = x + (sigmas[i + 1] - sigmas[i]) * v
    return x


def read_words(z: torch.Tensor, scenes: list[data.Scene]) -> float:
    """Share of lines whose every cell is nearest to the right character in the mask channels: a score without OCR."""
    table = latent._tables()[0][..., : latent.MASK_CHANNELS].reshape(len(data.ALPHABET) + 1, -1)
    good = total = 0
    for sample, scene in zip(z.cpu().numpy(), scenes):
        h, w = scene.chars.shape
        cells = sample[6:].reshape(latent.MASK_CHANNELS, h, 4, w, 2).transpose(1, 3, 2, 4, 0).reshape(h, w, -1)
        distance = ((cells[:, :, None] - table) ** 2).sum(-1)
        wrong = (distance.argmin(-1) != scene.chars) & (scene.chars > 0)
        lettered = [row for row in range(h) if scene.chars[row].any()]
        total += len(lettered)
        good += sum(not wrong[row].any() for row in lettered)
    return good / total


def load(model: DecoderModel, checkpoint: Path) -> None:
    model.dit.load_state_dict(read_component(checkpoint, "transformer"))
    model.glyph.load_state_dict(read_component(checkpoint, "text_encoder"))


def print_words(checkpoint: Path, count: int = 64) -> None:
    """A checkpoint's share of held-out words that are right in every letter, drawn from true plans; no OCR."""
    model = DecoderModel().eval()
    load(model, checkpoint)
    for name, draw in panel_scenes.GROUPS.items():
        rng = random.Random(7)
        groups = [draw(rng, 8, data.held_word) for _ in range(count // 8)]
        shares = [read_words(sample_latents(model, group).cpu(), group) for group in groups]
        print(f"words of {name}: {sum(shares) / len(shares):.3f}", flush=True)


def train(folder: Path, recipe: Recipe) -> None:
    """Train or go on training until `minutes` in all are spent."""
    torch.manual_seed(recipe.seed)
    model = DecoderModel()
    fresh = not read_meta(folder)
    if fresh and recipe.start:
        load(model, recipe.start)
    elif fresh:
        print("glyph warm-up", warm_up_glyphs(model.glyph, random.Random(recipe.seed)), flush=True)
    model.to(recipe.device)
    stage = Stage(folder, model, optimisers(model, "dit.transformer_blocks", recipe), recipe.minutes)
    rng = random.Random(recipe.seed + stage.step)
    generator = torch.Generator().manual_seed(recipe.seed + stage.step)
    grids = data.parse_sizes(recipe.sizes)
    while stage.running():
        h, w, _ = rng.choices(grids, [weight for *_, weight in grids])[0]
        train_step(stage, draw_batch(rng, h, w, recipe), rng, generator, aux=0.3)
        if stage.step % 250 == 0:
            log_words(stage, *grids[stage.step // 250 % len(grids)][:2])


def draw_batch(rng: random.Random, h: int, w: int, recipe: Recipe) -> list[data.Scene]:
    """Scenes of one size with the same number of references: none, one or two."""
    if rng.random() < recipe.scenes:
        if rng.random() < CARDS:
            return panel_scenes.draw_cards(rng, recipe.batch)
        return panel_scenes.draw_scenes(rng, LARGE_SCENES)
    # ragged pictures cost what their patches cost: keep the tokens of a batch alike
    count = max(8, math.ceil(recipe.batch * 8 / (h * w)))
    if rng.random() >= recipe.edits:
        return data.draw_scenes(rng, h, w, count, recipe.regions)
    kinds = ("combine",) if rng.random() < COMBINED else edits.SINGLE
    return edits.draw_edits(rng, h, w, count, kinds)


def log_words(stage: Stage, h: int, w: int) -> None:
    """Log the share of held-out words drawn right from true plans: new ones, and those of edits."""
    rng, kinds = random.Random(7), edits.SINGLE
    held = {
        "words": data.held_scenes(32, h, w),
        "edited words": [edits.draw_edit(rng, h, w, rng.choice(kinds), data.held_word).scene for _ in range(32)],
        "scene words": panel_scenes.draw_scenes(rng, 8, data.held_word),
        "texts of several words": panel_scenes.draw_cards(rng, 16, data.held_word),
    }
    drawn = {name: sample_latents(stage.ema, group).cpu() for name, group in held.items()}
    sheet = np.concatenate([latent.pictures(drawn[name].numpy()) for name in ("words", "edited words")])
    drawing.write_sheet(sheet, stage.folder / f"samples_{h}x{w}.png", columns=8)
    drawing.write_sheet(latent.pictures(drawn["scene words"].numpy()), stage.folder / "samples_scenes.png")
    stage.log({**{name: read_words(z, held[name]) for name, z in drawn.items()}, "grid": [h, w]})
