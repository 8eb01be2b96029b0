"""Reading a benchmark's images by OCR, resumable: a line of `readings.jsonl` is not read again."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..progress import Progress
from . import ocr
from .generate import image_path
from .prompts import Case

SILENT = 5  # images from which on "nothing read at all" is a failure of the reader, not of the images
SHEET_COLUMNS, SHEET_WIDTH, SHEET_LIMIT = 4, 256, 48


@dataclass(frozen=True)
class Reading:
    """What OCR made of one image. `words` and `correct` count, `similarity` adds up over words."""

    name: str
    group: str
    words: int
    correct: int
    similarity: float
    read: tuple[str, ...]


def read(
    cases: Iterable[Case],
    folder: Path,
    engine: str = "auto",
    languages: str = "eng",
    progress: Progress | None = None,
    strict: bool = False,
) -> list[Reading]:
    """Read every image of `folder`, keeping readings in `readings.jsonl` beside them; `strict` is that of scores."""
    cases = list(cases)
    engine = ocr.available_engine(engine)
    for case in cases:
        existing_image(folder, case)
    path = folder / "readings.jsonl"
    known = _known_readings(path)
    readings = []
    with open(path, "a", encoding="utf-8") as file:
        for done, case in enumerate(cases, start=1):
            image = image_path(folder, case)
            # An image that was generated again since is read again.
            key = f"{engine} {languages} {image.stat().st_mtime_ns}"
            if known.get(case.name, {}).get("key") != key:
                words = ocr.read_words(open_image(image), engine, languages)
                known[case.name] = {"key": key, "name": case.name, "read": _as_rows(words)}
                file.write(json.dumps(known[case.name], ensure_ascii=False) + "\n")
                file.flush()
            readings.append(_score(case, known[case.name]["read"], strict))
            if progress:
                progress(done, len(cases), name=case.name)
    return readings


def existing_image(folder: Path, case: Case) -> Path:
    path = image_path(folder, case)
    if not path.exists():
        raise InputError(f"{path} is missing; generate it first")
    return path


def open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image; delete it, and it will be generated again") from None


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
            f"OCR read nothing on any of {len(readings)} images, so there is no score; look at the contact sheet: "
            "if the words are legible, the engine or its language data is broken, try another with --ocr"
        )
