"""Where words stand: text regions as fractions of the page, and their JSON.

Fractions run 0..1 from the top left corner; pixels appear only where a size is passed in. `js/layout_geometry.js`
holds the same limits and reading order; `tests/data/layout_fit.json` keeps the two equal.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields

from ..errors import InputError
from ..text import shown

FORMAT = "glm-image-layout"
VERSION = 1
ROLES = ("title", "subtitle", "body", "caption", "label", "sign", "price", "text")
MAX_REGIONS = 100
MAX_JSON = 4_000_000  # characters; larger than any layout, smaller than what freezes a parser


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
        data = parse_json(value) if isinstance(value, str) else value
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'the layout is not a "{FORMAT}" object; draw it in the editor or use its JSON')
        if data.get("version") != VERSION:
            version = shown(data.get("version"))
            raise InputError(f"the layout has version {version}, this release reads {VERSION}; update the pack")
        regions = data.get("regions")
        if not isinstance(regions, list):
            raise InputError(f"the layout's regions are {type(regions).__name__}, expected a list")
        return cls(tuple(region_from_dict(i, item) for i, item in enumerate(limited(regions))))


def parse_json(text: str) -> object:
    """JSON of a layout; too long, too deep or damaged is an `InputError`."""
    if len(text) > MAX_JSON:
        raise InputError(f"the layout's JSON has {len(text)} characters; at most {MAX_JSON} are read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the layout is not valid JSON: {error}") from None


def region_from_dict(index: int, item: object) -> TextRegion:
    """One region of the JSON; unknown fields are refused, because dropping them would lose what the user wrote."""
    if not isinstance(item, dict):
        raise InputError(f"region {index + 1} is {type(item).__name__}, expected an object")
    known = {field.name for field in fields(TextRegion)}
    unknown, missing = sorted(set(item) - known), sorted({"text", "x", "y", "width", "height"} - set(item))
    if unknown or missing:
        problem = f"has unknown fields {shown(unknown)}" if unknown else f"lacks {missing}"
        raise InputError(f"region {index + 1} {problem}; fields are {sorted(known)}")
    numbers = {key: _number(index, key, item[key]) for key in ("x", "y", "width", "height")}
    words = {key: _string(index, key, item[key]) for key in set(item) - set(numbers)}
    return TextRegion(**numbers, **words)


def limited(items: list) -> list:
    """The items of a layout as they came; more than a page can hold are refused before any is read."""
    if len(items) > MAX_REGIONS:
        raise InputError(f"the layout has {len(items)} regions; at most {MAX_REGIONS} are accepted, merge some")
    return items


def is_number(value: object) -> bool:
    """A finite int or float that a float can hold; JSON has numbers that no float can."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number(index: int, key: str, value: object) -> float:
    if not is_number(value):
        raise InputError(f"region {index + 1}: {key} is {shown(value)}, expected a number from 0 to 1")
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
