"""Where words land: `python tools/layout_eval.py --model checkpoints/small --count 100`.

Makes held-out layouts (words training never saw, on free rows and columns of the token grid), draws each with every
switch of the layout guidance off and on, same seeds throughout, reads the pictures back by OCR, and writes the share
of words whose centre lies in their box, as a Markdown table and JSON. For checkpoints that `training/` makes: the
layouts use its lettering.

`--decoder planted` draws the plan's tokens by rule instead of by diffusion, so that only planning is judged.
"""

import argparse
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def _load_package() -> None:
    """This tree as `comfyui_glm_image`, installed or not."""
    spec = importlib.util.spec_from_file_location(
        "comfyui_glm_image", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_glm_image"] = module
    spec.loader.exec_module(module)


if "comfyui_glm_image" not in sys.modules:
    _load_package()

from comfyui_glm_image.pipeline import ocr, sketch  # noqa: E402
from comfyui_glm_image.pipeline.checkpoint import load_module  # noqa: E402
from comfyui_glm_image.pipeline.config import (  # noqa: E402
    DitConfig,
    GenerationConfig,
    GlyphConfig,
    ProcessorConfig,
    SchedulerConfig,
    VaeConfig,
    VisionLanguageConfig,
)
from comfyui_glm_image.pipeline.dit import Dit  # noqa: E402
from comfyui_glm_image.pipeline.generate import GridControl, decode, prefill  # noqa: E402
from comfyui_glm_image.pipeline.geometry import TOKEN, preview_grid  # noqa: E402
from comfyui_glm_image.pipeline.glyph import GlyphEncoder  # noqa: E402
from comfyui_glm_image.pipeline.guidance import (  # noqa: E402
    PlanGuidance,
    glyph_visibility,
    latent_holder,
    plan_controls,
    sketch_tokens,
)
from comfyui_glm_image.pipeline.layout import Layout, TextRegion  # noqa: E402
from comfyui_glm_image.pipeline.plan import upsample_tokens  # noqa: E402
from comfyui_glm_image.pipeline.planner import Planner  # noqa: E402
from comfyui_glm_image.pipeline.prompt import PromptEncoder, collate  # noqa: E402
from comfyui_glm_image.pipeline.scheduler import euler_step, schedule  # noqa: E402
from comfyui_glm_image.training import data  # noqa: E402

GRID = (3, 6)  # tokens: pictures of 192x96 px, the small checkpoint's largest
PREVIEW = preview_grid(*GRID)
INKS, PAPER = ("black", "red"), "white"  # an ink a word, as training mostly has them
FONT = "SketchMono"
PLACES = ("at the top", "in the middle", "at the bottom")  # by row, in the words of the training prompts
RESAMPLES = 1000
BATCH = 20  # plans made at once


@dataclass(frozen=True)
class Switches:
    """One row of the table."""

    prompt: bool = False
    plan: PlanGuidance = field(default_factory=PlanGuidance)
    attention: float = 0.0  # share of the steps
    level: float = 1.0  # noise level down to which boxes follow the sketch


FORCE = PlanGuidance("force")
ROWS = {
    "all off": Switches(),
    "prompt": Switches(prompt=True),
    "plan: bias 6": Switches(plan=PlanGuidance("bias", 6.0)),
    "plan: bias 12": Switches(plan=PlanGuidance("bias", 12.0)),
    "plan: force": Switches(plan=FORCE),
    "plan: force, preview grid only": Switches(plan=PlanGuidance("force", grids="preview")),
    "plan: force, full grid only": Switches(plan=PlanGuidance("force", grids="full")),
    "decoder: own text, first 30 %": Switches(attention=0.3),
    "latent: sketch down to 0.6": Switches(level=0.6),
    "prompt + force": Switches(prompt=True, plan=FORCE),
    "prompt + force + decoder": Switches(prompt=True, plan=FORCE, attention=0.3),
    "prompt + force + latent": Switches(prompt=True, plan=FORCE, level=0.6),
}


@dataclass(frozen=True)
class Case:
    layout: Layout
    words: list[str]
    rows: list[int]

    def prompt(self, placed: bool) -> str:
        """In the words of the checkpoint's training; with or without saying where."""
        where = [f" {PLACES[row]}" if placed else "" for row in self.rows]
        texts = [f'"{word}" in {ink}{place}' for word, ink, place in zip(self.words, INKS, where)]
        return f"{PAPER} poster that says " + " and ".join(texts)


def held_out_cases(count: int, seed: int = 0) -> list[Case]:
    """Layouts of one or two held-out words, each box exactly the cells its word takes."""
    rng = random.Random(seed)
    fitting = [word for word in data.HELD_OUT if 2 <= len(word) <= data.MAX_WORD]
    cases = []
    for index in range(count):
        words = _distinct(rng, fitting, 1 + index % 2)
        rows = sorted(rng.sample(range(GRID[0]), len(words)))
        regions = [_region(rng, word, row, ink) for word, row, ink in zip(words, rows, INKS)]
        cases.append(Case(Layout(tuple(regions)), words, rows))
    return cases


def _distinct(rng: random.Random, words: list[str], count: int) -> list[str]:
    """Words of different lengths, as training has them: plan tokens tell strings apart by length."""
    while True:
        chosen = rng.sample(words, count)
        if len({len(word) for word in chosen}) == count:
            return chosen


def _region(rng: random.Random, word: str, row: int, ink: str) -> TextRegion:
    h, w = GRID
    cells = (len(word) + 1) // 2
    left = rng.randint(0, w - cells)
    color = "#{:02x}{:02x}{:02x}".format(*data.COLOURS[ink])
    return TextRegion(word, left / w, row / h, cells / w, 1 / h, align="left", font=FONT, color=color)


def interval(shares: list[tuple[int, int]]) -> tuple[float, float, float]:
    """(share, low, high) of pooled counts, by a 95 % bootstrap over pictures."""
    rng = random.Random(0)

    def pooled(rows):
        return sum(hit for hit, _ in rows) / max(1, sum(total for _, total in rows))

    samples = sorted(pooled(rng.choices(shares, k=len(shares))) for _ in range(RESAMPLES))
    return pooled(shares), samples[int(0.025 * RESAMPLES)], samples[int(0.975 * RESAMPLES)]


class Planning:
    """The planner's half: prompts and guidance -> tokens of the full grid."""

    def __init__(self, folder: Path):
        home = folder / "vision_language_encoder"
        self.config = VisionLanguageConfig.from_json(home / "config.json")
        self.planner = load_module(Planner, self.config, home, "cpu", torch.float32)
        self.sampling = GenerationConfig.from_json(home / "generation_config.json")
        self.processor = ProcessorConfig.from_folder(folder / "processor")
        self.prompts = PromptEncoder(folder / "processor", self.config)

    def plans(self, cases: list[Case], switches: Switches, pictures: list[Image.Image]) -> list[torch.Tensor]:
        """(h*w,) ids of the full grid of every case, drawn with the case's number as seed."""
        found = []
        for start in range(0, len(cases), BATCH):
            chosen = slice(start, start + BATCH)
            seeds = list(range(len(cases)))[chosen]
            found += self._batch(cases[chosen], switches, pictures[chosen], seeds)
        return found

    def _batch(self, cases, switches: Switches, pictures, seeds: list[int]) -> list[torch.Tensor]:
        encoded = [self.prompts.encode(case.prompt(switches.prompt), GRID, PREVIEW) for case in cases]
        prefix = prefill(self.planner, collate(encoded, GRID, PREVIEW, self.config), "cpu")
        controls = [self._controls(case, switches, picture) for case, picture in zip(cases, pictures)]
        joined = {name: joined_controls([each[name] for each in controls]) for name in controls[0]}
        return list(decode(self.planner, prefix, self.sampling, seeds, controls=joined)["full"])

    def _controls(self, case: Case, switches: Switches, picture: Image.Image) -> dict[str, GridControl]:
        if not switches.plan.active:
            return {}
        grids = {"preview": PREVIEW, "full": GRID}
        tokens = sketch_tokens(self.planner, picture, grids, self.processor)
        return plan_controls(switches.plan, case.layout, tokens, grids, self.config.vq_config.num_embeddings)


def joined_controls(controls: list[GridControl]) -> GridControl:
    """Controls of one grid for each image -> one control of the batch."""
    if controls[0].forced is not None:
        forced, masks = zip(*((control.forced, control.forced_mask) for control in controls))
        return GridControl(forced=torch.stack(forced), forced_mask=torch.stack(masks))

    def bias(position: int) -> torch.Tensor:
        rows = [control.bias_at(position) for control in controls]
        empty = torch.zeros(data.CODEBOOK)
        return torch.stack([empty if row is None else row for row in rows])

    return GridControl(logit_bias=bias)


class Diffusion:
    """The decoder's half: tokens, texts and guidance -> a picture."""

    def __init__(self, folder: Path, steps: int, guidance_scale: float):
        from comfyui_glm_image.pipeline.vae import Vae

        def load(cls, config, name):
            home = folder / name
            return load_module(cls, config.from_json(home / "config.json"), home, "cpu", torch.float32)

        self.dit, self.glyphs = load(Dit, DitConfig, "transformer"), load(GlyphEncoder, GlyphConfig, "text_encoder")
        self.vae = load(Vae, VaeConfig, "vae")
        self.steps, self.guidance_scale = steps, guidance_scale
        self.scheduler = SchedulerConfig.from_json(folder / "scheduler" / "scheduler_config.json")

    @torch.no_grad()
    def draw(self, case: Case, plan: torch.Tensor, switches: Switches, picture: Image.Image, seed: int) -> Image.Image:
        h, w = 2 * GRID[0], 2 * GRID[1]
        prior = upsample_tokens(plan[None], GRID)
        texts = case.layout.glyph_texts()
        embeds = self.glyphs.embed(texts)
        free = self.dit.prepare(embeds, prior, (h, w))
        visible = glyph_visibility(case.layout, texts, (h, w))
        guided = self.dit.prepare(embeds, prior, (h, w), glyph_visible=visible)
        without = self.dit.prepare(self.glyphs.embed([""]), prior, (h, w), prior_token_drop=True)
        noise = torch.randn(1, 16, 2 * h, 2 * w, generator=torch.Generator().manual_seed(seed))
        hold = self._holder(case, noise, picture, switches.level)
        plan_of_steps = schedule(self.scheduler, self.steps, h * w)
        size = torch.tensor([[float(TOKEN * side) for side in GRID]])
        modulations = self.dit.modulations(plan_of_steps.timesteps, size, torch.zeros_like(size), torch.float32)
        latents = noise
        for step, (sigma, delta) in enumerate(zip(plan_of_steps.sigmas.tolist(), plan_of_steps.deltas())):
            latents = hold(latents, sigma)
            context = guided if step < switches.attention * self.steps else free
            wanted = self.dit.step(latents, modulations[step], context)
            plain = self.dit.step(latents, modulations[step], without)
            latents = euler_step(latents, plain + self.guidance_scale * (wanted - plain), delta)
        return self._to_picture(latents)

    def _holder(self, case: Case, noise: torch.Tensor, picture: Image.Image, level: float) -> Callable:
        if level == 1:
            return lambda latents, sigma: latents
        pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(1, *picture.size[::-1], 3)
        return latent_holder(self.vae.encode(pixels.movedim(-1, 1) / 127.5 - 1), noise, case.layout, level)

    def _to_picture(self, latents: torch.Tensor) -> Image.Image:
        pixels = (self.vae.decode(latents)[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)
        return Image.fromarray((255 * pixels).round().to(torch.uint8).numpy())


class Planted:
    """Stands in for the decoder: draws each lettered token by rule, taking the letters from the text of that length."""

    def draw(self, case: Case, plan: torch.Tensor, switches: Switches, picture: Image.Image, seed: int) -> Image.Image:
        codes = plan.view(1, *GRID).numpy()
        chars = torch.zeros(1, GRID[0], 2 * GRID[1], dtype=torch.long).numpy()
        by_length = {len(word): word for word in case.words}
        for row, column in torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).tolist():
            slot = data.code_slot(int(codes[0, row, column]))
            if slot is None or slot[0] not in by_length:
                continue
            pair = by_length[slot[0]][2 * slot[1] : 2 * slot[1] + 2]
            for i, letter in enumerate(pair):
                chars[0, row, 2 * column + i] = data.ALPHABET.index(letter) + 1
        return Image.fromarray(data.render(codes, chars)[0])


def measure(cases: list[Case], planning: Planning, decoder, rows: dict[str, Switches], out: Path) -> list[dict]:
    """Draw and read every case under every row of switches."""
    results, planned = [], {}
    pictures = [sketch.render(case.layout, TOKEN * GRID[0], TOKEN * GRID[1], PAPER) for case in cases]
    for name, switches in rows.items():
        started, scores = time.monotonic(), []
        folder = out / "".join(letter if letter.isalnum() else "_" for letter in name)
        folder.mkdir(parents=True, exist_ok=True)
        key = (switches.prompt, switches.plan)
        if key not in planned:
            planned[key] = planning.plans(cases, switches, pictures)
        for seed, (case, plan, picture) in enumerate(zip(cases, planned[key], pictures)):
            drawn = decoder.draw(case, plan, switches, picture, seed)
            drawn.save(folder / f"{seed:03d}.png")
            scores.append(ocr.score_layout(case.layout, ocr.read_words(drawn, "tesseract")))
        results.append(summary(name, scores, time.monotonic() - started))
        print(markdown_row(results[-1]), flush=True)
    return results


def summary(name: str, scores: list[ocr.Score], seconds: float) -> dict:
    return {
        "switches": name,
        "layouts": len(scores),
        "words": sum(score.words for score in scores),
        "placed": interval([(score.placed, score.words) for score in scores]),
        "accuracy": interval([(score.correct, score.words) for score in scores]),
        "ned": sum(score.similarity for score in scores) / max(1, sum(score.words for score in scores)),
        "seconds": round(seconds, 1),
    }


HEAD = "| switches | layouts | words | in their box (95 %) | read exactly (95 %) | NED |\n|---|---|---|---|---|---|"


def markdown_row(row: dict) -> str:
    def share(values):
        return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

    figures = [row["switches"], row["layouts"], row["words"], share(row["placed"]), share(row["accuracy"])]
    return "| " + " | ".join(map(str, figures)) + f" | {row['ned']:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "small", help="checkpoint folder")
    parser.add_argument("--count", type=int, default=100, help="layouts")
    parser.add_argument("--steps", type=int, default=20, help="of the decoder")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale of the decoder")
    parser.add_argument("--decoder", choices=("diffusion", "planted"), default="diffusion")
    parser.add_argument("--rows", nargs="*", help="names of rows to measure (default: all the decoder can tell apart)")
    parser.add_argument("--out", type=Path, default=Path("out/layout_eval"), help="folder of pictures and results.json")
    options = parser.parse_args()
    ocr.available_engine("tesseract")
    planted = options.decoder == "planted"
    decoder = Planted() if planted else Diffusion(options.model, options.steps, options.cfg)
    rows = {name: row for name, row in ROWS.items() if not (planted and (row.attention or row.level < 1))}
    rows = {name: rows[name] for name in options.rows or rows}
    print(HEAD, flush=True)
    results = measure(held_out_cases(options.count), Planning(options.model), decoder, rows, options.out)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
