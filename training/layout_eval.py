"""Where words land: `python -m comfyui_glm_image.training.layout_eval --count 100`.

Makes held-out layouts (words training never saw, on free rows and columns of the token grid), generates each with every
switch of layout control off and on, same seeds throughout, reads the pictures back by OCR, and writes the share
of words whose centre lies in their box, as a Markdown table and JSON. For checkpoints that `training/` makes: the
layouts use its lettering.

`--decoder planted` draws the plan's tokens by rule instead of by diffusion, so that only planning is judged.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..pipeline import GlmImage, Plan
from ..pipeline.evaluation import ocr
from ..pipeline.geometry import TOKEN
from ..pipeline.images import to_pil
from ..pipeline.layout.control import PlanControl
from ..pipeline.layout.layout_control import LayoutControl
from ..pipeline.layout.regions import Layout, TextRegion
from ..pipeline.loading.checkpoint import BUNDLED as SMALL
from . import data, drawing

GRID = (3, 6)  # tokens: images of 192x96 px, the small checkpoint's default
HEIGHT, WIDTH = (TOKEN * side for side in GRID)
INKS, PAPER = ("black", "red"), "white"  # an ink a word, as training mostly has them
FONT = "SketchMono"
PLACES = ("at the top", "in the middle", "at the bottom")  # by row, in the words of the training prompts
RESAMPLES = 1000
BATCH = 20  # plans made at once


@dataclass(frozen=True)
class Switches:
    """One row of the table."""

    prompt: bool = False
    plan: PlanControl = field(default_factory=PlanControl)
    attention: float = 0.0  # share of the steps
    level: float = 1.0  # noise level down to which boxes follow the sketch


FORCE = PlanControl("force")
ROWS = {
    "all off": Switches(),
    "prompt": Switches(prompt=True),
    "plan: bias 6": Switches(plan=PlanControl("bias", 6.0)),
    "plan: bias 12": Switches(plan=PlanControl("bias", 12.0)),
    "plan: force": Switches(plan=FORCE),
    "plan: force, preview grid only": Switches(plan=PlanControl("force", grids="preview")),
    "plan: force, full grid only": Switches(plan=PlanControl("force", grids="full")),
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
        return f"a {PAPER} poster that says " + " and ".join(texts)


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


def planned(model: GlmImage, cases: list[Case], switches: Switches, seed: int) -> Plan:
    """Plans of all cases, row k sampled with seed + k."""
    prompts = [case.prompt(switches.prompt) for case in cases]
    return model.plan(prompts, HEIGHT, WIDTH, seed=seed, layout=controls(cases, switches))


def controls(cases: list[Case], switches: Switches) -> list[LayoutControl]:
    """What each image of a batch follows."""
    settings = {"plan": switches.plan, "attention": switches.attention, "sketch_level": switches.level}
    return [LayoutControl(case.layout, **settings) for case in cases]


class Diffusion:
    """The decoder's half: plans, texts and layouts -> images."""

    def __init__(self, model: GlmImage, steps: int, guidance_scale: float):
        self.model, self.steps, self.guidance_scale = model, steps, guidance_scale

    def render(self, cases: list[Case], plan: Plan, switches: Switches, seed: int) -> list[Image.Image]:
        layout = controls(cases, switches)
        latents = self.model.denoise(plan, self.steps, self.guidance_scale, seed, layout=layout)
        return to_pil(self.model.decode(latents))


class Planted:
    """Stands in for the decoder: draws each lettered token by rule, taking the letters from the text of that length."""

    def render(self, cases: list[Case], plan: Plan, *_) -> list[Image.Image]:
        return [self._picture(case, ids) for case, ids in zip(cases, plan.prior_token_ids_d32)]

    def _picture(self, case: Case, ids: torch.Tensor) -> Image.Image:
        codes = ids.view(1, *GRID).numpy()
        chars = torch.zeros(1, GRID[0], 2 * GRID[1], dtype=torch.long).numpy()
        by_length = {len(word): word for word in case.words}
        for row, column in torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).tolist():
            slot = data.code_slot(int(codes[0, row, column]))
            if slot is None or slot[0] not in by_length:
                continue
            pair = by_length[slot[0]][2 * slot[1] : 2 * slot[1] + 2]
            for i, letter in enumerate(pair):
                chars[0, row, 2 * column + i] = data.ALPHABET.index(letter) + 1
        return Image.fromarray(drawing.render(codes, chars)[0])


def measure(model: GlmImage, cases: list[Case], decoder, rows: dict[str, Switches], out: Path) -> list[dict]:
    """Generate and read every case under every row of switches."""
    results, plans = [], {}
    for name, switches in rows.items():
        started, scores = time.monotonic(), []
        folder = out / "".join(letter if letter.isalnum() else "_" for letter in name)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(0, len(cases), BATCH):
            chosen, key = cases[seed : seed + BATCH], (switches.prompt, switches.plan, seed)
            if key not in plans:
                plans[key] = planned(model, chosen, switches, seed)
            images = decoder.render(chosen, plans[key], switches, seed)
            for number, (case, image) in enumerate(zip(chosen, images), start=seed):
                image.save(folder / f"{number:03d}.png")
                scores.append(ocr.score_layout(case.layout, ocr.read_words(image, "tesseract")))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL, help="checkpoint folder")
    parser.add_argument("--count", type=int, default=100, help="layouts")
    parser.add_argument("--steps", type=int, default=20, help="of the decoder")
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale of the decoder")
    parser.add_argument("--decoder", choices=("diffusion", "planted"), default="diffusion")
    parser.add_argument("--rows", nargs="*", help="names of rows to measure (default: all the decoder can tell apart)")
    parser.add_argument("--out", type=Path, default=Path("out/layout_eval"), help="folder of pictures and results.json")
    options = parser.parse_args()
    ocr.available_engine("tesseract")
    planted = options.decoder == "planted"
    model = GlmImage.from_pretrained(options.model, device="cpu", dtype="fp32", local_only=True)
    decoder = Planted() if planted else Diffusion(model, options.steps, options.cfg)
    rows = {name: row for name, row in ROWS.items() if not (planted and (row.attention or row.level < 1))}
    rows = {name: rows[name] for name in options.rows or rows}
    print(HEAD, flush=True)
    results = measure(model, held_out_cases(options.count), decoder, rows, options.out)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
