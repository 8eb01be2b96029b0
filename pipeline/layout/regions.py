"""Where words stand: text regions as fractions of the page, their JSON, and what makes a layout unusable.

Fractions run 0..1 from the top left corner; pixels appear only where a size is passed in. `js/layout_geometry.js`
holds the same limits and the same fitting rule; `tests/data/layout_fit.json` keeps the two equal.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from ..errors import InputError
from ..text import SURROGATE

FORMAT = "glm-image-layout"
VERSION = 1
ROLES = ("title", "subtitle", "body", "caption", "label", "sign", "price", "text")
ALIGNMENTS = ("left", "center", "right")
DIRECTIONS = ("horizontal", "vertical")
MAX_REGIONS = 100
MAX_TEXT = 1000  # characters of one region
MAX_JSON = 4_000_000  # characters; larger than any layout, smaller than what freezes a parser
MIN_FONT = 12  # px: smaller lettering is not legible after the decoder's 16 px patches
MAX_OVERLAP = 0.35  # share of the smaller box
LINE_HEIGHT = 1.2  # em
EDGE = 1e-3  # rounding allowed beyond the page

# East Asian wide characters and emoji: one em each; everything else is taken as NARROW em.
WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd]"
)
NARROW = 0.6
CLOSING = "[，。、！？；：）」』】》〉”’]"  # never first on a line
PIECE = re.compile(rf"\s*(?:{WIDE.pattern}|(?:(?!{WIDE.pattern})\S)+){CLOSING}*")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
COLOR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class TextRegion:
    """One string and its box: left, top, width and height as fractions of the page."""

    text: str
    x: float
    y: float
    width: float
    height: float
    role: str = "text"
    style: str = ""  # free words for the prompt: "bold red neon"
    align: str = "center"
    direction: str = "horizontal"
    font: str = ""  # family or file for the sketch; empty: the first that has every letter
    color: str = ""  # "#rrggbb" for sketch; empty: black

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def line(self) -> str:
        """The text as one line, as prompt and glyph encoder take it."""
        return " ".join(self.text.split())

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of a page of this size."""
        return round(self.x * width), round(self.y * height), round(self.right * width), round(self.bottom * height)


@dataclass(frozen=True)
class Layout:
    """Text regions in drawing order: later ones lie above."""

    regions: tuple[TextRegion, ...] = ()

    def __len__(self) -> int:
        return len(self.regions)

    def reading_order(self) -> list[int]:
        """Indices of the regions as a reader meets them: rows from the top, each from the left."""
        return reading_order(self.regions)

    def glyph_texts(self) -> list[str]:
        """The explicit glyph list: one string for every region, in reading order."""
        return [self.regions[i].line for i in self.reading_order()]

    def to_json(self) -> str:
        regions = [asdict(region) for region in self.regions]
        return json.dumps({"format": FORMAT, "version": VERSION, "regions": regions}, ensure_ascii=False)

    @classmethod
    def from_json(cls, value: str | dict) -> "Layout":
        """Read the editor's value; another version or a field of the wrong kind is an `InputError` that names it."""
        data = _parse(value) if isinstance(value, str) else value
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'the layout is not a "{FORMAT}" object; draw it in the editor or use its JSON')
        if data.get("version") != VERSION:
            raise InputError(
                f"the layout has version {data.get('version')!r}, this release reads {VERSION}; update the pack"
            )
        regions = data.get("regions")
        if not isinstance(regions, list):
            raise InputError(f"the layout's regions are {type(regions).__name__}, expected a list")
        return cls(tuple(region_from_dict(i, item) for i, item in enumerate(regions)))


def _parse(text: str) -> object:
    if len(text) > MAX_JSON:
        raise InputError(f"the layout's JSON has {len(text)} characters; at most {MAX_JSON} are read")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"the layout is not valid JSON: {error}") from None


def region_from_dict(index: int, item: object) -> TextRegion:
    """One region of the JSON; unknown fields are refused, because dropping them would lose what the user wrote."""
    if not isinstance(item, dict):
        raise InputError(f"region {index + 1} is {type(item).__name__}, expected an object")
    known = {field.name for field in fields(TextRegion)}
    unknown, missing = sorted(set(item) - known), sorted({"text", "x", "y", "width", "height"} - set(item))
    if unknown or missing:
        problem = f"has unknown fields {unknown}" if unknown else f"lacks {missing}"
        raise InputError(f"region {index + 1} {problem}; fields are {sorted(known)}")
    numbers = {key: _number(index, key, item[key]) for key in ("x", "y", "width", "height")}
    words = {key: _string(index, key, item[key]) for key in set(item) - set(numbers)}
    return TextRegion(**numbers, **words)


def _number(index: int, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"region {index + 1}: {key} is {value!r}, expected a number from 0 to 1")
    return float(value)


def _string(index: int, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"region {index + 1}: {key} is {type(value).__name__}, expected text")
    return value


def reading_order(regions: tuple[TextRegion, ...]) -> list[int]:
    """Indices in reading order. Boxes share a row when the centre of one lies in the height of the row's first."""
    left = sorted(range(len(regions)), key=lambda i: (regions[i].y, regions[i].x))
    order = []
    while left:
        first = regions[left[0]]
        row = [i for i in left if regions[i].y + regions[i].height / 2 <= first.bottom]
        row = row or left[:1]
        order += sorted(row, key=lambda i: (regions[i].x, regions[i].y))
        left = [i for i in left if i not in row]
    return order


def overlap(a: TextRegion, b: TextRegion) -> float:
    """Share of the smaller box's area that both boxes cover."""
    across = max(0.0, min(a.right, b.right) - max(a.x, b.x))
    down = max(0.0, min(a.bottom, b.bottom) - max(a.y, b.y))
    smaller = min(a.width * a.height, b.width * b.height)
    return across * down / smaller if smaller > 0 else 0.0


def advance(text: str) -> float:
    """Estimated width of a line in em, without a font."""
    wide = len(WIDE.findall(text))
    return wide + NARROW * (len(text) - wide)


def wrap(text: str, limit: float, measure: Callable[[str], float]) -> list[str] | None:
    """Break `text` into lines no wider than `limit`: at spaces, and beside wide characters. None: it cannot fit."""
    lines = []
    for paragraph in text.strip().splitlines() or [""]:
        line = ""
        for piece in _pieces(paragraph):
            if measure((line + piece).rstrip()) <= limit:
                line += piece
                continue
            if line:
                lines.append(line.rstrip())
            line = piece.lstrip()
            if measure(line.rstrip()) > limit:
                return None
        lines.append(line.rstrip())
    return lines


def _pieces(paragraph: str) -> list[str]:
    """Words with the space before them; a wide character is a piece of its own, with the marks that close after it."""
    return PIECE.findall(" ".join(paragraph.split()))


def fitting_size(text: str, width: float, height: float, measure: Callable[[str], float] = advance) -> float:
    """Largest font size, in the unit of `width` and `height`, at which the wrapped text stays in the box."""
    low, high = 0.0, height / LINE_HEIGHT
    for _ in range(14):  # halvings: finer than a tenth of a pixel on any page
        size = (low + high) / 2
        lines = wrap(text, width / size if size else 0.0, measure)
        if lines is not None and len(lines) * LINE_HEIGHT * size <= height:
            low = size
        else:
            high = size
    return low


def vertical_size(text: str, width: float, height: float) -> float:
    """As `fitting_size`, for characters stacked in columns from right to left."""
    return fitting_size("".join(text.split()), height, width, _stacked)


def _stacked(text: str) -> float:
    """Height of stacked characters in em."""
    return LINE_HEIGHT * len(text)


def check(layout: Layout, height: int, width: int, max_overlap: float = MAX_OVERLAP) -> None:
    """Raise one `InputError` that lists every region that cannot be drawn on a page of this size, and why."""
    if not layout.regions:
        raise InputError("the layout has no regions; draw a box and type a text")
    if len(layout) > MAX_REGIONS:
        raise InputError(f"the layout has {len(layout)} regions; at most {MAX_REGIONS} are accepted, merge some")
    problems = [(i, why) for i, region in enumerate(layout.regions) for why in _problems(region, height, width)]
    if not problems:
        problems = _overlaps(layout, max_overlap)
    if problems:
        shown = [f"region {i + 1} ({_short(layout.regions[i].text)}): {why}" for i, why in problems[:8]]
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError("the layout cannot be drawn: " + "; ".join(shown) + more)


def _short(text: str) -> str:
    line = " ".join(text[:80].split())
    return f'"{line[:24]}..."' if len(line) > 24 else f'"{line}"'


def _problems(region: TextRegion, height: int, width: int) -> list[str]:
    for key in ("x", "y", "width", "height"):
        if not math.isfinite(getattr(region, key)):
            return [f"{key} is not a finite number"]
    if region.width <= 0 or region.height <= 0:
        return [f"the box is {region.width:.3g} x {region.height:.3g} of the page; give it an area"]
    if region.x < -EDGE or region.y < -EDGE or region.right > 1 + EDGE or region.bottom > 1 + EDGE:
        left, top, right, bottom = (round(100 * v) for v in (region.x, region.y, region.right, region.bottom))
        return [f"outside the page ({left}%..{right}% across, {top}%..{bottom}% down); keep it in 0%..100%"]
    return _text_problems(region) or _fit_problems(region, height, width)


def _text_problems(region: TextRegion) -> list[str]:
    if not region.text.strip():
        return ["empty text; type one or delete the box"]
    if len(region.text) > MAX_TEXT:
        return [f"{len(region.text)} characters; at most {MAX_TEXT} fit one region"]
    if found := CONTROL.search(region.text):
        return [f"control character U+{ord(found[0]):04X}; remove it"]
    if found := SURROGATE.search(region.text):
        return [f"unpaired surrogate U+{ord(found[0]):04X}; type the character again"]
    if region.direction == "vertical" and RIGHT_TO_LEFT.search(region.text):
        return ["right-to-left letters cannot stand in vertical columns; use the horizontal direction"]
    choices = (("role", ROLES), ("align", ALIGNMENTS), ("direction", DIRECTIONS))
    wrong = [
        f"{key} {getattr(region, key)!r}; use {', '.join(ok)}" for key, ok in choices if getattr(region, key) not in ok
    ]
    if region.color and not COLOR.fullmatch(region.color):
        wrong.append(f"colour {region.color!r}; use #rrggbb")
    if len(region.style) > MAX_TEXT or CONTROL.search(region.style):
        wrong.append("the style has control characters or is too long; use a few words")
    return wrong


def _fit_problems(region: TextRegion, height: int, width: int) -> list[str]:
    size = vertical_size if region.direction == "vertical" else fitting_size
    fits = size(region.text, region.width * width, region.height * height)
    if fits >= MIN_FONT:
        return []
    box = f"{region.width * width:.0f}x{region.height * height:.0f} px"
    return [f"more text than its box of {box} holds at {MIN_FONT} px (it would be {fits:.0f} px); enlarge the box"]


def _overlaps(layout: Layout, limit: float) -> list[tuple[int, str]]:
    found = []
    for i, a in enumerate(layout.regions):
        for j, b in enumerate(layout.regions[:i]):
            share = overlap(a, b)
            if share > limit:
                why = f"{share:.0%} of it or of region {j + 1} ({_short(b.text)}) is shared; at most {limit:.0%}"
                found.append((i, why))
    return found


def inside_page(layout: Layout) -> Layout:
    """The layout with boxes clipped to the page: what `check` lets pass as rounding becomes exact."""
    return Layout(tuple(_clipped(region) for region in layout.regions))


def _clipped(region: TextRegion) -> TextRegion:
    x, y = max(0.0, region.x), max(0.0, region.y)
    return replace(region, x=x, y=y, width=min(1.0, region.right) - x, height=min(1.0, region.bottom) - y)
