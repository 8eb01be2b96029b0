"""Benchmarks: draw every prompt, read the pictures back by OCR, score the words, and write a report.

Scores follow CVTG-2K (see `ocr.py`), pooled over the words of each group. Drawing and reading are resumable: a
picture that exists is not drawn again, a line of `readings.jsonl` is not read again. A reading failure and a
picture without legible words are different things: when no picture of a run gives a single word, the run is not
scored, it is an error.
"""

import argparse
import contextlib
import html
import itertools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, UnidentifiedImageError

from ...cli import arguments
from ...cli.progress import Bars
from ..errors import InputError
from ..files import replacing
from ..geometry import check_size
from ..models.config import read_json
from ..progress import Progress
from ..text import quoted_texts
from . import edits, ocr

BENCHMARKS = ("small", "cvtg2k", "longtext")
EDITS = "small-edit"  # pictures to edit, scored by what changed and what stayed
SMALL = arguments.SMALL / "benchmark"
ABLATIONS = {
    "none": "nothing is left out",
    "no-glyphs": "the decoder gets no glyph embeddings",
    "no-plan": "the decoder gets no prior tokens",
    "shuffled-plan": "the plan's tokens in a random order",
}
RESAMPLES = 2000  # of the bootstrap
SILENT = 5  # pictures from which on "nothing read at all" is a failure of the reader, not of the pictures
SHEET_COLUMNS, SHEET_WIDTH, SHEET_LIMIT = 4, 256, 48

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """One prompt: `group` is what scores are reported by, `name` its file name, size None is the user's choice."""

    name: str
    group: str
    prompt: str
    texts: tuple[str, ...]
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Reading:
    """What OCR made of one picture. `words` and `correct` count, `similarity` adds up over words."""

    name: str
    group: str
    words: int
    correct: int
    similarity: float
    read: tuple[str, ...]


@dataclass(frozen=True)
class GroupScore:
    """Word accuracy and NED of one group, with the bounds of a 95 % bootstrap interval over pictures."""

    group: str
    pictures: int
    words: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ned: float
    ned_low: float
    ned_high: float


def load_cases(benchmark: str, folder: Path | None = None, limit: int | None = None) -> list[Case]:
    """The prompts of a benchmark; `limit` keeps the first of each group. `small` comes with the bundled checkpoint."""
    if benchmark not in BENCHMARKS:
        raise InputError(f"benchmark {benchmark!r} is not known; use {', '.join((*BENCHMARKS, EDITS))}")
    if folder is None and benchmark != "small":
        raise InputError(f"{benchmark} does not come with this package; download it and name its folder with --data")
    folder = folder or SMALL
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder with the data of {benchmark}")
    cases = _read_longtext(folder) if benchmark == "longtext" else _read_regions(folder)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return [case for group in groups.values() for case in group[:limit]]


def _read_regions(folder: Path) -> list[Case]:
    """CVTG-2K's layout: `N.json` holds, for N regions, `data_list` of `index`, `prompt` and `sentence_list`."""
    files = sorted((path for path in folder.glob("*.json") if path.stem.isdigit()), key=lambda path: int(path.stem))
    if not files:
        raise InputError(f"{folder} holds no 2.json ... 5.json; name the folder that does")
    cases = []
    for path in files:
        entries = read_json(path).get("data_list")
        if not isinstance(entries, list):
            raise InputError(f"{path}: key 'data_list' is missing or not a list")
        for entry in entries:
            missing = {"index", "prompt"} - entry.keys()
            if missing:
                raise InputError(f"{path}: an entry of data_list has no {', '.join(sorted(missing))}")
            texts = quoted_texts(entry["prompt"], "prompt_order") or entry.get("sentence_list") or []
            size = entry.get("height"), entry.get("width")
            cases.append(Case(f"{path.stem}_{entry['index']}", path.stem, entry["prompt"], tuple(texts), *size))
    return cases


def _read_longtext(folder: Path) -> list[Case]:
    """LongText-Bench: `text_prompts.jsonl` and `text_prompts_zh.jsonl` of `prompt_id`, `prompt`, `text`, `length`."""
    cases = []
    for language, file in (("en", "text_prompts.jsonl"), ("zh", "text_prompts_zh.jsonl")):
        path = folder / file
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                texts = [entry["text"]] if isinstance(entry["text"], str) else entry["text"]
                name = f"{language}_{entry['prompt_id']}"
                cases.append(Case(name, language, entry["prompt"], tuple(texts)))
            except (json.JSONDecodeError, KeyError) as error:
                raise InputError(f"{path} line {number} is not an entry of LongText-Bench: {error!r}") from None
    if not cases:
        raise InputError(f"{folder} holds no text_prompts.jsonl or text_prompts_zh.jsonl")
    return cases


def draw(
    cases: Iterable[Case],
    folder: Path,
    make: Callable[[list[Case], int], list[Image.Image]],
    batch: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `folder/NAME.png` for every case that has none yet.

    `make(some cases of one size, the index of the first)` draws up to `batch` pictures. What a case looks like does
    not depend on which pictures existed before: batches are always cut at the same places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = list(cases)
    for start, part in batches(cases, batch):
        missing = [case for case in part if not picture_path(folder, case).exists()]
        if missing:
            for case, picture in zip(part, make(part, start), strict=True):
                with replacing(picture_path(folder, case)) as partial:
                    picture.save(partial, format="PNG")
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


def picture_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.png"


def read(
    cases: Iterable[Case],
    folder: Path,
    engine: str = "auto",
    languages: str = "eng",
    progress: Progress | None = None,
    strict: bool = False,
) -> list[Reading]:
    """Read every picture of `folder`, keeping readings in `readings.jsonl` beside them; `strict` is that of scores."""
    cases = list(cases)
    engine = ocr.available_engine(engine)
    for case in cases:
        _drawn_path(folder, case)
    path = folder / "readings.jsonl"
    known = _known_readings(path)
    readings = []
    with open(path, "a", encoding="utf-8") as file:
        for done, case in enumerate(cases, start=1):
            picture = picture_path(folder, case)
            # A picture that was drawn again since is read again.
            key = f"{engine} {languages} {picture.stat().st_mtime_ns}"
            if known.get(case.name, {}).get("key") != key:
                words = ocr.read_words(_open(picture), engine, languages)
                known[case.name] = {"key": key, "name": case.name, "read": _as_rows(words)}
                file.write(json.dumps(known[case.name], ensure_ascii=False) + "\n")
                file.flush()
            readings.append(_score(case, known[case.name]["read"], strict))
            if progress:
                progress(done, len(cases), name=case.name)
    return readings


def _drawn_path(folder: Path, case: Case) -> Path:
    path = picture_path(folder, case)
    if not path.exists():
        raise InputError(f"{path} is missing; draw it first")
    return path


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture; delete it, and it will be drawn again") from None


def _known_readings(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a run may have stopped within the last line
    return {row["name"]: row for row in rows}


def _as_rows(words: list[ocr.Word]) -> list[list]:
    return [[w.text, w.x, w.y, w.width, w.height, w.confidence] for w in words]


def _score(case: Case, rows: list[list], strict: bool) -> Reading:
    words = [ocr.Word(*row) for row in rows]
    score = ocr.score_texts(list(case.texts), words, strict)
    read = tuple(word.text for word in words)
    return Reading(case.name, case.group, score.words, score.correct, score.similarity, read)


def check_reader(readings: list[Reading]) -> None:
    """Raise when not one word was read anywhere: then the reader failed, and a score of zero would be a lie."""
    if len(readings) >= SILENT and not any(reading.read for reading in readings):
        raise InputError(
            f"OCR read nothing on any of {len(readings)} pictures, so there is no score; look at the contact sheet: "
            "if the words are legible, the engine or its language data is broken, try another with --ocr"
        )


# ---- the command ----


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draw a benchmark's prompts, read the pictures by OCR, score the words, write a report."
    parser.add_argument("--benchmark", default="small", help=f"{', '.join((*BENCHMARKS, EDITS))} (default: small)")
    parser.add_argument("--data", type=Path, help="folder of the benchmark's files; small comes with the package")
    arguments.add_model(parser)
    parser.set_defaults(model="small")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of pictures and report; resumed")
    parser.add_argument("--limit", type=int, help="only the first prompts of each group")
    parser.add_argument("--height", type=int, help="pixels, where a prompt does not say its own (default: 1024)")
    parser.add_argument("--width", type=int, help="pixels, where a prompt does not say its own (default: 1024)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance scale (default: 1.5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; the next ones count up")
    parser.add_argument("--batch", type=int, default=1, help="pictures drawn at once (default: 1)")
    parser.add_argument("--ablation", default="none", help=f"{', '.join(ABLATIONS)} (default: none)")
    parser.add_argument("--read-only", action="store_true", help="draw nothing; score the pictures that lie in --out")
    parser.add_argument("--ocr", default="auto", help=f"{', '.join(ocr.ENGINES)} (default: auto)")
    parser.add_argument("--languages", default="eng", help="of tesseract, as eng+chi_sim (default: eng)")
    parser.add_argument(
        "--strict", action="store_true", help="tell apart what looks alike: curly and straight quotes, dashes, widths"
    )


def run(args: argparse.Namespace) -> int:
    """Everything that can be wrong is looked at before the first picture is drawn."""
    if args.ablation not in ABLATIONS:
        raise InputError(f"ablation {args.ablation!r} is not known; use {', '.join(ABLATIONS)}")
    for name in ("batch", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is not accepted; use 1 or more")
    if args.benchmark == EDITS:
        return _run_edits(args)
    cases = [_sized(case, args) for case in load_cases(args.benchmark, args.data, args.limit)]
    engine = ocr.available_engine(args.ocr)  # last: what was asked for is judged on every machine alike
    about = {"benchmark": args.benchmark, "OCR": f"{engine} ({args.languages})"}
    about["comparison"] = "strict" if args.strict else "look-alikes count as one"
    if not args.read_only:
        drawn = _settings(args)
        check_settings(args.out, drawn)
        draw(cases, args.out, _painter(args, cases), args.batch, _bar("drawing"))
        about = {**about, **{key: str(value) for key, value in drawn.items()}}
    readings = read(cases, args.out, engine, args.languages, _bar("reading"), args.strict)
    print(write_report(args.out, f"GLM-Image: {args.benchmark}", about, cases, readings))
    return 0


def _run_edits(args: argparse.Namespace) -> int:
    """Edit every picture of the benchmark, one at a time, and say what changed and what stayed."""
    if args.ablation != "none":
        raise InputError(f"{EDITS} has no ablations; leave --ablation out")
    cases = edits.load_edits(args.data or SMALL / "edit", args.limit)
    engine = ocr.available_engine(args.ocr)
    about = {"benchmark": EDITS, "OCR": f"{engine} ({args.languages})"}
    if not args.read_only:
        drawn = _settings(args)
        check_settings(args.out, drawn)
        draw(cases, args.out, _editor(args, cases), 1, _bar("drawing"))
        about = {**about, **{key: str(value) for key, value in drawn.items()}}
    pictures = [_open(_drawn_path(args.out, case)) for case in cases]
    results = [
        edits.score_edit(case, picture, engine, args.languages, args.strict) for case, picture in zip(cases, pictures)
    ]
    check_reader([result for result in results if result.kind == "word"])
    text, content = edits.report(f"GLM-Image: {EDITS}", about, results)
    edits.edit_sheet(cases, pictures).save(args.out / "sheet.png")
    _write(args.out / "report.md", text)
    _write(args.out / "report.json", json.dumps(content, indent=2))
    print(text)
    return 0


def _editor(args: argparse.Namespace, cases: list[edits.EditCase]) -> Callable:
    """Draw edits with the model, each with a seed of its own."""
    model = _open_model(args, cases, count=1)

    def make(cases: list[edits.EditCase], index: int) -> list[Image.Image]:
        return [edits.paint_edit(model, case, args.seed + index, steps=args.steps, cfg=args.cfg) for case in cases]

    return make


def _sized(case: Case, args: argparse.Namespace) -> Case:
    """The case with a size: its own, else the user's, else 1024."""
    height, width = case.height or args.height or 1024, case.width or args.width or 1024
    check_size(height, width)
    return replace(case, height=height, width=width)


def _settings(args: argparse.Namespace) -> dict:
    """What pictures depend on, besides the prompts."""
    names = ("model", "revision", "steps", "cfg", "seed", "ablation", "height", "width", "device", "dtype")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def check_settings(folder: Path, settings: dict) -> None:
    """Keep the settings in `settings.json`; refuse to go on with pictures that were drawn with others."""
    path = folder / "settings.json"
    old = read_json(path) if path.exists() else settings
    changed = sorted(key for key in old.keys() | settings.keys() if old.get(key) != settings.get(key))
    if changed:
        pairs = ", ".join(f"{key} {old.get(key)!r}, now {settings.get(key)!r}" for key in changed)
        raise InputError(f"{folder} holds pictures drawn with {pairs}; use another --out, or the same settings")
    _write(path, json.dumps(settings, indent=2))


def _bar(what: str) -> Progress:
    """A progress bar that follows `progress(done, total)`."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit="picture", disable=None)  # None: only on a terminal

    def progress(done: int, total: int, **_more) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def _painter(args: argparse.Namespace, cases: list[Case]) -> Callable[[list[Case], int], list[Image.Image]]:
    """Draw with the model; every prompt has a seed of its own, counted from the first prompt of the benchmark."""
    model = _open_model(args, cases, args.batch)

    def make(cases: list[Case], index: int) -> list[Image.Image]:
        seed = args.seed + index
        return paint(model, cases, seed, steps=args.steps, cfg=args.cfg, ablation=args.ablation)

    return make


def _open_model(args: argparse.Namespace, cases: list, count: int):
    """The model with room for `count` of the largest pictures at once."""
    largest = max(cases, key=lambda case: case.height * case.width)
    planned = {"height": largest.height, "width": largest.width, "count": count}
    with Bars() as bars:
        return arguments.open_model(argparse.Namespace(**{**vars(args), **planned}), bars)


def paint(model, cases: list[Case], seed: int, *, steps: int, cfg: float, ablation: str = "none") -> list[Image.Image]:
    """Pictures of cases of one size, case k with seed + k, with one part of the model left out if so asked."""
    from ..images import to_pil

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


# ---- scores and the report ----


def score_groups(readings: list[Reading], seed: int = 0) -> list[GroupScore]:
    """Scores of every group, then of all pictures as "all" if there are several groups."""
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.group, []).append(reading)
    if len(groups) > 1:
        groups["all"] = list(readings)
    return [_group_score(name, members, seed) for name, members in groups.items()]


def _group_score(group: str, readings: list[Reading], seed: int) -> GroupScore:
    words = sum(r.words for r in readings)
    if not words:
        raise InputError(f"group {group} asks for no words at all; are the texts of its prompts quoted?")
    rng = random.Random(seed)
    samples = [_pooled(rng.choices(readings, k=len(readings))) for _ in range(RESAMPLES)]
    accuracy, ned = _pooled(readings)
    low, high = zip(*(_interval(values) for values in zip(*samples)))
    return GroupScore(group, len(readings), words, accuracy, low[0], high[0], ned, low[1], high[1])


def _pooled(readings: list[Reading]) -> tuple[float, float]:
    words = max(1, sum(r.words for r in readings))
    return sum(r.correct for r in readings) / words, sum(r.similarity for r in readings) / words


def _interval(values: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(values)
    edge = math.floor(len(ordered) * 0.025)
    return ordered[edge], ordered[-1 - edge]


def contact_sheet(cases: list[Case], readings: list[Reading], folder: Path) -> Image.Image:
    """The first pictures in rows, each over what was asked for and what was read."""
    chosen = list(zip(cases, readings))[:SHEET_LIMIT]
    pictures = [_fit(_open(picture_path(folder, case)).convert("RGB")) for case, _ in chosen]
    cell = max(picture.height for picture in pictures) + 34
    rows = math.ceil(len(chosen) / SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (SHEET_WIDTH + 8), rows * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((case, reading), picture) in enumerate(zip(chosen, pictures)):
        x, y = i % SHEET_COLUMNS * (SHEET_WIDTH + 8) + 4, i // SHEET_COLUMNS * cell + 2
        sheet.paste(picture, (x, y))
        good = reading.correct == reading.words
        pen.text((x, y + picture.height + 2), _ascii(" | ".join(case.texts)), fill="black")
        pen.text((x, y + picture.height + 15), _ascii(" | ".join(reading.read)), fill="green" if good else "red")
    return sheet


def _fit(picture: Image.Image) -> Image.Image:
    return picture.resize((SHEET_WIDTH, round(picture.height * SHEET_WIDTH / picture.width)))


def _ascii(text: str, longest: int = 42) -> str:
    """Text that Pillow's built-in font can draw."""
    text = text.encode("ascii", "replace").decode()
    return text if len(text) <= longest else text[: longest - 3] + "..."


def write_report(folder: Path, title: str, about: dict[str, str], cases: list[Case], readings: list[Reading]) -> str:
    """Write `report.md`, `report.html`, `report.json` and `sheet.png` into `folder`; return the Markdown."""
    check_reader(readings)
    scores = score_groups(readings)
    contact_sheet(cases, readings, folder).save(folder / "sheet.png")
    rows = [_row(score) for score in scores]
    lines = [f"# {title}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", NOTE, "", "![pictures](sheet.png)", ""]
    text = "\n".join(lines)
    _write(folder / "report.md", text)
    _write(folder / "report.html", _html(title, about, rows))
    content = {"title": title, "about": about, "scores": [asdict(score) for score in scores]}
    _write(folder / "report.json", json.dumps(content, indent=2))
    return text


HEADINGS = ("regions", "pictures", "words", "word accuracy (95 %)", "NED (95 %)")
NOTE = (
    "Word accuracy: words asked for that OCR read exactly, in lower case. NED: 1 - edit distance / longer length, "
    "mean over words. Intervals: bootstrap over pictures."
)


def _row(score: GroupScore) -> tuple[str, ...]:
    accuracy = f"{score.accuracy:.3f} ({score.accuracy_low:.3f} to {score.accuracy_high:.3f})"
    ned = f"{score.ned:.3f} ({score.ned_low:.3f} to {score.ned_high:.3f})"
    return score.group, str(score.pictures), str(score.words), accuracy, ned


def _html(title: str, about: dict[str, str], rows: list[tuple[str, ...]]) -> str:
    def cells(values: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    items = "".join(f"<li>{html.escape(key)}: {html.escape(value)}</li>" for key, value in about.items())
    table = cells(HEADINGS, "th") + "".join(cells(row, "td") for row in rows)
    return (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em .8em;border:1px solid #ccc}"
        "table{border-collapse:collapse}img{max-width:100%}</style>"
        f"<h1>{html.escape(title)}</h1><ul>{items}</ul><table>{table}</table>"
        f"<p>{html.escape(NOTE)}</p><img src='sheet.png' alt='pictures'>\n"
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        Path(partial).write_text(text, encoding="utf-8")
