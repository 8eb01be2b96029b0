"""What makes a layout unusable: boxes outside the page, text that does not fit, overlaps."""

import math
import re
from dataclasses import replace

from ..errors import InputError
from ..text import SURROGATE
from .regions import MAX_REGIONS, ROLES, Layout, TextRegion
from .text_fit import fitting_size, vertical_size

ALIGNMENTS = ("left", "center", "right")
DIRECTIONS = ("horizontal", "vertical")
MAX_TEXT = 1000  # characters of one region
MIN_FONT = 12  # px: smaller lettering is not legible after the decoder's 16 px patches
MAX_OVERLAP = 0.35  # share of the smaller box
EDGE = 1e-3  # rounding allowed beyond the page
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
COLOR = re.compile("#[0-9a-fA-F]{6}")


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


def overlap(a: TextRegion, b: TextRegion) -> float:
    """Share of the smaller box's area that both boxes cover."""
    across = max(0.0, min(a.right, b.right) - max(a.x, b.x))
    down = max(0.0, min(a.bottom, b.bottom) - max(a.y, b.y))
    smaller = min(a.width * a.height, b.width * b.height)
    return across * down / smaller if smaller > 0 else 0.0
