"""The benchmark of edits: was the asked thing changed, and did the rest stay?

A case is a prompt, its references, and the image that it asks for, with the 32 px tokens that the edit changes. A new
word must be read by OCR. Any other change must bring the changed tokens to at most `NEARER` of the squared error
between the image before and the image asked for. The rest is compared with the image asked for, by PSNR.
"""

import json
import random
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import InputError
from ..geometry import TOKEN
from ..models.config import read_json
from . import ocr
from .scores import RESAMPLES, interval

KEPT = 25.0  # dB over the tokens that were not to change
NEARER = 0.25
BEST = 99.0  # dB of equal images, which have no error to take a logarithm of
SHEET_OF_KIND, SHEET_WIDTH = 8, 192
STRIPS = ("before", "second", "after")
HEADINGS = ("edit", "images", "changed (95 %)", "rest kept (95 %)", "both", "PSNR of the rest, median")
NOTE = (
    f"Changed: the new word is read exactly, or the changed tokens are nearer than {NEARER:g} of the old error to the "
    f"image asked for. Kept: PSNR of all other tokens is {KEPT:g} dB or more. Intervals: bootstrap over images."
)


@dataclass(frozen=True)
class EditCase:
    """One edit; `changed` (h, w) bool marks the tokens that it changes."""

    name: str
    kind: str
    prompt: str
    texts: tuple[str, ...]
    references: tuple[Image.Image, ...]
    asked: Image.Image
    changed: np.ndarray

    @property
    def height(self) -> int:
        return self.asked.height

    @property
    def width(self) -> int:
        return self.asked.width


@dataclass(frozen=True)
class EditResult:
    """`psnr` in dB of the tokens that were to stay; `read` is what OCR read where there was a word to read."""

    name: str
    kind: str
    changed: bool
    psnr: float
    read: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        return self.psnr >= KEPT


def load_edits(folder: Path, limit: int | None = None) -> list[EditCase]:
    """The cases of a folder as `write_edits` made it; `limit` keeps the first of each kind."""
    path = folder / "edits.json"
    if not path.exists():
        raise InputError(f"{folder} holds no edits.json; name the folder that does with --data")
    entries = read_json(path)
    strips = {name: Image.open(folder / f"{name}.png").convert("RGB") for name in STRIPS}
    h, w = entries["height"], entries["width"]
    counts: dict[str, int] = {}
    cases, seconds = [], 0
    for i, entry in enumerate(entries["edits"]):
        references = [_cut(strips["before"], i, h, w)]
        if entry["references"] == 2:
            references.append(_cut(strips["second"], seconds, h, w))
            seconds += 1
        counts[entry["kind"]] = counts.get(entry["kind"], 0) + 1
        if limit is None or counts[entry["kind"]] <= limit:
            changed = np.zeros((h // TOKEN, w // TOKEN), bool)
            changed.flat[entry["changed"]] = True
            about = entry["name"], entry["kind"], entry["prompt"], tuple(entry["texts"])
            cases.append(EditCase(*about, tuple(references), _cut(strips["after"], i, h, w), changed))
    return cases


def _cut(strip: Image.Image, index: int, height: int, width: int) -> Image.Image:
    return strip.crop((0, index * height, width, (index + 1) * height))


def write_edits(folder: Path, cases: list[EditCase]) -> None:
    """Write cases of one size: `edits.json`, and their images one below the other."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {
            "name": case.name,
            "kind": case.kind,
            "prompt": case.prompt,
            "texts": list(case.texts),
            "references": len(case.references),
            "changed": np.flatnonzero(case.changed).tolist(),
        }
        for case in cases
    ]
    content = {"height": cases[0].height, "width": cases[0].width, "edits": entries}
    (folder / "edits.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    strips = {
        "before": [case.references[0] for case in cases],
        "second": [case.references[1] for case in cases if len(case.references) > 1],
        "after": [case.asked for case in cases],
    }
    for name, images in strips.items():
        _below_each_other(images).save(folder / f"{name}.png", optimize=True)


def _below_each_other(images: list[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
    for i, image in enumerate(images):
        strip.paste(image, (0, i * image.height))
    return strip


def generate_edit(model, case: EditCase, seed: int, *, steps: int, cfg: float) -> Image.Image:
    """The image that the model makes of an edit."""
    from ..images import to_pil

    plan = model.plan([case.prompt], case.height, case.width, images=list(case.references), seed=seed)
    return to_pil(model.decode(model.denoise(plan, steps, cfg, seed, glyph_texts=list(case.texts) or [""])))[0]


def score_edit(
    case: EditCase, image: Image.Image, engine: str, languages: str = "eng", strict: bool = False
) -> EditResult:
    """Judge one image; only those with a new word are read."""
    if image.size != case.asked.size:
        given, wanted = ("x".join(map(str, each.size)) for each in (image, case.asked))
        raise InputError(
            f"{case.name} is {given}, this edit asks for {wanted}; delete it, and it will be generated again"
        )
    drawn, asked, before = (_pixels(each) for each in (image, case.asked, case.references[0]))
    inside = case.changed.repeat(TOKEN, 0).repeat(TOKEN, 1)
    found = ocr.read_words(image, engine, languages) if case.texts else []
    if case.texts:
        score = ocr.score_texts(list(case.texts), found, strict)
        changed = score.correct == score.words
    else:
        changed = _error(drawn, asked, inside) <= NEARER * _error(before, asked, inside)
    rest = _error(drawn, asked, ~inside)
    psnr = min(BEST, 10 * float(np.log10(255**2 / rest))) if rest else BEST
    return EditResult(case.name, case.kind, bool(changed), psnr, tuple(word.text for word in found))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.float32)


def _error(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(((a - b)[where] ** 2).mean())


def edit_rows(results: list[EditResult]) -> list[tuple[str, ...]]:
    """The report's rows: every kind of edit, then all of them."""
    groups: dict[str, list[EditResult]] = {}
    for result in results:
        groups.setdefault(result.kind, []).append(result)
    groups["all"] = results
    return [_row(name, members) for name, members in groups.items()]


def _row(name: str, results: list[EditResult]) -> tuple[str, ...]:
    both = sum(result.changed and result.kept for result in results) / len(results)
    psnr = statistics.median(result.psnr for result in results)
    shares = (_share([r.changed for r in results]), _share([r.kept for r in results]))
    return name, str(len(results)), *shares, f"{both:.3f}", f"{psnr:.1f} dB"


def _share(hits: list[bool]) -> str:
    rng = random.Random(0)
    low, high = interval(sum(rng.choices(hits, k=len(hits))) / len(hits) for _ in range(RESAMPLES))
    return f"{sum(hits) / len(hits):.3f} ({low:.3f} to {high:.3f})"


def edit_sheet(cases: Iterable[EditCase], images: Iterable[Image.Image]) -> Image.Image:
    """The first of each kind in rows: what was given, what came out, what was asked for, over the prompt."""
    kinds: dict[str, list[tuple[EditCase, Image.Image]]] = {}
    for case, image in zip(cases, images):
        kinds.setdefault(case.kind, []).append((case, image))
    rows = [row for same in kinds.values() for row in same[:SHEET_OF_KIND]]
    height = rows[0][0].height * SHEET_WIDTH // rows[0][0].width
    sheet = Image.new("RGB", (4 * (SHEET_WIDTH + 8), len(rows) * (height + 20)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (case, image) in enumerate(rows):
        y = i * (height + 20)
        second = case.references[1] if len(case.references) > 1 else None
        for k, each in enumerate((case.references[0], second, image, case.asked)):
            if each is not None:
                sheet.paste(each.resize((SHEET_WIDTH, height)), (k * (SHEET_WIDTH + 8) + 4, y))
        pen.text((4, y + height + 3), case.prompt.encode("ascii", "replace").decode(), fill="black")
    return sheet


def report(title: str, about: dict[str, str], results: list[EditResult]) -> tuple[str, dict]:
    """The Markdown of a report, and what its JSON holds."""
    lines = [f"# {title}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in edit_rows(results)]
    lines += ["", NOTE, "", "![images](sheet.png)", ""]
    return "\n".join(lines), {"title": title, "about": about, "edits": [asdict(result) for result in results]}
