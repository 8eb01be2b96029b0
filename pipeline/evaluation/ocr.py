"""Reading images back: words with boxes by tesseract or rapidocr, and how well they match the texts asked for.

Both engines are optional. Scores follow CVTG-2K: words in lower case, accuracy = words read exactly / all words,
NED = mean over words of 1 - edit distance / longer length. What differs: characters that look alike count as one
unless comparison is `strict`, see `folding.py`. Chinese, Japanese and Korean characters count as a word
each, since OCR does not say where such words end.
"""

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from ..layout.regions import Layout, TextRegion
from ..layout.text_fit import WIDE
from .folding import fold

ENGINES = ("auto", "tesseract", "rapidocr")
INSTALL = (
    "install one: `pip install pytesseract` and the tesseract program (Debian: `apt install tesseract-ocr "
    "tesseract-ocr-chi-sim`), or `pip install rapidocr onnxruntime`"
)
READ_SIDE, ENLARGE = 1400, 4.0  # px and times: engines want capitals of 30 px and more, so small images are enlarged
MIN_CONFIDENCE = 20.0  # percent; below it tesseract reads texture as letters
MIN_LINE_CONFIDENCE = 60.0  # percent; read as a line, even texture gives letters
SPARSE_TEXT, ONE_LINE = 11, 7  # tesseract's page segmentation modes
SAME_WORD = 0.5  # similarity from which a word read counts as an attempt at a word asked for


@dataclass(frozen=True)
class Word:
    """One word read: its box in fractions of the image, confidence in percent."""

    text: str
    x: float
    y: float
    width: float
    height: float
    confidence: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    def inside(self, region: TextRegion) -> bool:
        x, y = self.centre
        return region.x <= x <= region.right and region.y <= y <= region.bottom


@dataclass(frozen=True)
class Score:
    """How words read match words asked for; `placed` counts those whose centre lies in their region."""

    words: int
    correct: int
    similarity: float
    placed: int = 0

    @property
    def accuracy(self) -> float:
        return self.correct / self.words if self.words else 0.0

    @property
    def ned(self) -> float:
        return self.similarity / self.words if self.words else 0.0

    @property
    def placement(self) -> float:
        return self.placed / self.words if self.words else 0.0


def available_engine(name: str = "auto") -> str:
    """The engine to use; an `InputError` that says what to install when there is none."""
    if name not in ENGINES:
        raise InputError(f"OCR engine {name!r}; use {', '.join(ENGINES)}")
    has = {
        "tesseract": bool(importlib.util.find_spec("pytesseract") and shutil.which("tesseract")),
        "rapidocr": importlib.util.find_spec("rapidocr") is not None,
    }
    found = [engine for engine in has if has[engine] and name in ("auto", engine)]
    if not found:
        what = "no OCR engine is installed" if name == "auto" else f"the OCR engine {name} is not installed"
        raise InputError(f"{what}; {INSTALL}")
    return found[0]


def read_words(image: Image.Image, engine: str = "auto", languages: str = "eng") -> list[Word]:
    """Words on an RGB image. `languages` are tesseract's, joined by + ("eng+chi_sim"); rapidocr needs none."""
    read = {"tesseract": _tesseract, "rapidocr": _rapidocr}[available_engine(engine)]
    return read(image.convert("RGB"), languages)


def _tesseract(image: Image.Image, languages: str) -> list[Word]:
    """Sparse text, read dark on light and light on dark; of two readings of a place the surer one stays.

    A lone word on a label is sometimes not found as text at all; then the image is read as one line.
    """
    missing = set(languages.split("+")) - _tesseract_languages()
    if missing:
        raise InputError(
            f"tesseract has no language {', '.join(sorted(missing))}; Debian: apt install tesseract-ocr-..."
        )
    scale = min(max(1.0, READ_SIDE / max(image.size)), ENLARGE)
    size = (round(image.width * scale), round(image.height * scale))
    grey = ImageOps.autocontrast(image.convert("L").resize(size, Image.Resampling.LANCZOS), cutoff=1)
    found = _tesseract_pages(grey, languages, SPARSE_TEXT, MIN_CONFIDENCE)
    return _without_doubles(found or _tesseract_pages(grey, languages, ONE_LINE, MIN_LINE_CONFIDENCE))


@cache
def _tesseract_languages() -> set[str]:
    import pytesseract

    return set(pytesseract.get_languages(config=""))


def _tesseract_pages(grey: Image.Image, languages: str, mode: int, least: float) -> list[Word]:
    import pytesseract

    found = []
    for page in (grey, ImageOps.invert(grey)):
        data = pytesseract.image_to_data(
            page, lang=languages, config=f"--psm {mode}", output_type=pytesseract.Output.DICT
        )
        found += _rows_to_words(data, grey.size, least)
    return found


def _rows_to_words(data: dict, size: tuple[int, int], least: float) -> list[Word]:
    columns = zip(*(data[key] for key in ("text", "left", "top", "width", "height", "conf")))
    words = []
    for text, left, top, width, height, confidence in columns:
        if text.strip() and float(confidence) >= least:
            box = (left / size[0], top / size[1], width / size[0], height / size[1])
            words.append(Word(text.strip(), *box, float(confidence)))
    return words


def _without_doubles(words: list[Word]) -> list[Word]:
    kept: list[Word] = []
    for word in sorted(words, key=lambda w: -w.confidence * len(w.text)):
        if not any(_covers(other, word) for other in kept):
            kept.append(word)
    return sorted(kept, key=lambda w: (round(w.y, 2), w.x))


def _covers(a: Word, b: Word) -> bool:
    """Whether the boxes share more than a third of the smaller one."""
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 0 and down > 0 and across * down > min(a.width * a.height, b.width * b.height) / 3


@cache
def _rapidocr_reader() -> Callable:
    """Its three networks, loaded once: that takes seconds."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})


def _rapidocr(image: Image.Image, languages: str) -> list[Word]:
    """rapidocr finds lines; a line is split into words in proportion to their lengths."""
    result = _rapidocr_reader()(np.asarray(image)[..., ::-1])  # it takes arrays as BGR
    if result.txts is None:  # nothing found
        return []
    words = []
    for corners, line, confidence in zip(result.boxes, result.txts, result.scores):
        (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
        for found in re.finditer(r"\S+", line):
            start, stop = (left + (right - left) * i / len(line) for i in found.span())
            box = (start / image.width, top / image.height, (stop - start) / image.width, (bottom - top) / image.height)
            words.append(Word(found[0], *map(float, box), 100 * float(confidence)))
    return words


def split_words(text: str, strict: bool = False) -> list[str]:
    """Lower-case words as they are scored: cut at spaces, every wide character on its own, no marks at the ends.

    Characters are folded unless `strict`.
    """
    text = text if strict else fold(text)
    parts = re.sub(f"({WIDE})", r" \1 ", text.lower()).split()
    return [word for part in parts if (word := re.sub(r"^\W+|\W+$", "", part))]


def similarity(a: str, b: str) -> float:
    """1 - edit distance / longer length."""
    longest = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longest if longest else 1.0


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements that turn one string into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(last + (x != y), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def score_texts(texts: list[str], found: list[Word], strict: bool = False) -> Score:
    """Words of `texts` against words read, wherever they stand; `strict` tells look-alikes apart."""
    wanted = [(word, None) for text in texts for word in split_words(text, strict)]
    return _score(wanted, found, strict)


def score_layout(layout: Layout, found: list[Word], strict: bool = False) -> Score:
    """Words of a layout against words read; a word read in the right region is preferred to an equal one elsewhere."""
    wanted = [(word, region) for region in layout.regions for word in split_words(region.text, strict)]
    return _score(wanted, found, strict)


def _score(wanted: list[tuple[str, TextRegion | None]], found: list[Word], strict: bool) -> Score:
    """Pair words greedily, most similar first; each word read serves once."""
    pieces = [(piece, word) for word in found for piece in split_words(word.text, strict)]
    pairs = []
    for i, (want, region) in enumerate(wanted):
        for j, (piece, word) in enumerate(pieces):
            inside = region is not None and word.inside(region)
            pairs.append((similarity(want, piece), inside, -i, -j))
    used, got, correct, total, placed = set(), set(), 0, 0.0, 0
    for alike, inside, i, j in sorted(pairs, reverse=True):
        if i in used or j in got or alike == 0:
            continue
        used.add(i)
        got.add(j)
        correct += alike == 1
        total += alike
        placed += inside and alike >= SAME_WORD
    return Score(len(wanted), correct, total, placed)
