"""Layouts from other forms: ComfyUI's `elements`, pixel boxes, benchmark sentence lists, and plain text lines."""

import re

from ..errors import InputError
from ..text import shown
from .regions import FORMAT, MAX_JSON, ROLES, Layout, TextRegion, is_number, limited, parse_json

MARGIN = 0.05  # of the page, left and right of a band that gives no place across
GAP = 0.02  # of the page, between stacked bands
PLACES_DOWN = ("top", "middle", "bottom")
PLACES_ACROSS = ("left", "center", "right")
PLACE_HELP = (
    'a place is "top 25%", "bottom 10% left 40%", "middle", "25%" (the next band) or four numbers '
    '"10% 5% 80% 20%" (left, top, width, height)'
)


def read_layout(value: object, height: int, width: int) -> Layout:
    """Any accepted form -> `Layout`: JSON text, plain text lines, the editor's object, elements or pixel boxes."""
    if isinstance(value, str):
        text = value.strip()
        value = parse_json(text) if text[:1] in ("{", "[") else from_lines(text)
    if isinstance(value, Layout):
        return value
    if isinstance(value, dict) and "sentence_list" in value:
        return from_sentences(value["sentence_list"], value.get("carrier_list", ()))
    if isinstance(value, dict) and ("format" in value or "regions" in value):
        return Layout.from_json(value)
    items = value if isinstance(value, list) else [value]
    if items and isinstance(items[0], list):
        items = items[0]  # core's box lists hold one list for each frame
    if not all(isinstance(item, dict) for item in limited(items)):
        raise InputError(f"a layout is text, a list of boxes or a {FORMAT} object, not {type(value).__name__}")
    if any("bbox" in item for item in items):
        return from_elements(items)
    return from_pixel_boxes(items, height, width)


def from_elements(items: list[dict]) -> Layout:
    """Core's `elements`: bbox [ymin, xmin, ymax, xmax] in 0..1000, text, desc. Elements without text are objects."""
    regions = []
    for i, item in enumerate(items):
        if item.get("type", "text") != "text":
            continue
        y0, x0, y1, x1 = (value / 1000 for value in _four(i, "bbox", item.get("bbox")))
        if y1 <= y0 or x1 <= x0:
            raise InputError(
                f"element {i + 1}: bbox {shown(item['bbox'])} must be [ymin, xmin, ymax, xmax] with max above min"
            )
        regions.append(TextRegion(_text(i, item), x0, y0, x1 - x0, y1 - y0, style=_style(i, item)))
    return Layout(tuple(regions))


def from_pixel_boxes(items: list[dict], height: int, width: int) -> Layout:
    """Core's BOUNDING_BOXES: x, y, width, height in pixels of the page and `metadata` with text and desc."""
    regions = []
    for i, item in enumerate(items):
        about = item.get("metadata") or item
        if not isinstance(about, dict):
            raise InputError(f"element {i + 1}: metadata is {type(about).__name__}, expected an object")
        if about.get("type", "text") != "text":
            continue
        x, y, w, h = _four(i, "box", [item.get(key) for key in ("x", "y", "width", "height")])
        region = TextRegion(_text(i, about), x / width, y / height, w / width, h / height, style=_style(i, about))
        regions.append(region)
    return Layout(tuple(regions))


def _four(index: int, name: str, value: object) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(map(is_number, value)):
        raise InputError(f"element {index + 1}: {name} is {shown(value, 80)}, expected four numbers")
    return list(value)


def _text(index: int, item: dict) -> str:
    text = item.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"element {index + 1} has no text; connect the `elements` output, because `bboxes` drops the words"
        )
    return text


def _style(index: int, item: dict) -> str:
    style = item.get("desc", "")
    if not isinstance(style, str):
        raise InputError(f"element {index + 1}: desc is {type(style).__name__}, expected text")
    return style


def from_sentences(sentences: list[str], carriers: list[str] = ()) -> Layout:
    """CVTG-like lists have words and no boxes: equal bands from the top, the carrier ("sign") as role or style."""
    if not isinstance(sentences, (list, tuple)) or not all(isinstance(s, str) for s in sentences):
        raise InputError("sentence_list is a list of strings")
    if not isinstance(carriers, (list, tuple)):
        raise InputError("carrier_list is a list of strings")
    share = 1 / max(1, len(limited(sentences)))
    regions = []
    for i, text in enumerate(sentences):
        carrier = str(carriers[i]).strip() if i < len(carriers) else ""
        role = carrier.lower() if carrier.lower() in ROLES else "text"
        style = "" if role != "text" or not carrier else f"on the {carrier}"
        region = TextRegion(text, MARGIN, i * share + GAP / 2, 1 - 2 * MARGIN, share - GAP, role=role, style=style)
        regions.append(region)
    return Layout(tuple(regions))


LINE = re.compile(r"\s*(?:(?P<role>\w+)\s*(?:\((?P<style>[^()]*)\))?\s*:)?\s*(?P<rest>.*)")


def from_lines(text: str) -> Layout:
    r"""Plain text, a region a line: `title (bold red): OPEN 24h @ top 25%`.

    Role, style and place may be left out. Quotes around the text keep an @ or a colon in it; `\n` breaks a line.
    Lines without a side stack from the top; those without a height share what is left.
    """
    if len(text) > MAX_JSON:
        raise InputError(f"the layout has {len(text)} characters; at most {MAX_JSON} are read")
    lines = limited([line for line in text.splitlines() if line.strip()])
    entries = [_line(i, line) for i, line in enumerate(lines)]
    free = 1 - sum(place["height"] or 0 for _, place in entries if place["stacked"])
    waiting = sum(place["stacked"] and place["height"] is None for _, place in entries)
    if free < -1e-6 or (waiting and free < 0.01):
        raise InputError(f"the stacked lines ask for {100 * (1 - free):.0f}% of the page's height; at most 100%")
    regions, cursor = [], 0.0
    for about, place in entries:
        height = place["height"] if place["height"] is not None else free / max(1, waiting)
        y = cursor if place["stacked"] else place["y"]
        cursor += height if place["stacked"] else 0
        pad = GAP / 2 if place["stacked"] and height > 2 * GAP else 0
        region = TextRegion(x=place["x"], y=y + pad, width=place["width"], height=height - 2 * pad, **about)
        regions.append(region)
    return Layout(tuple(regions))


def _line(index: int, line: str) -> tuple[dict, dict]:
    name = f"line {index + 1}"
    match = LINE.fullmatch(line.strip())
    role, style, rest = (match["role"] or "").lower(), match["style"] or "", match["rest"]
    if role and role not in ROLES:
        if style:
            raise InputError(f"{name}: role {shown(role)}; use {', '.join(ROLES)}")
        role, rest = "", line.strip()  # "Opening hours: 9-17": the colon belongs to the text
    quoted = re.fullmatch(r'(?P<text>".*")(?:\s+@\s+(?P<place>.*))?', rest)
    if quoted:
        text, where = quoted["text"][1:-1], quoted["place"]
    else:
        text, _, where = rest.rpartition(" @ ") if " @ " in rest else (rest, "", None)
    text = text.strip().replace("\\n", "\n")
    return {"text": text, "role": role or "text", "style": style.strip()}, _place(name, where)


def _place(name: str, where: str | None) -> dict:
    """Words of a place -> x, y, width, height in fractions; `stacked` when the height follows the line before."""
    if not where:
        return {"x": MARGIN, "y": None, "width": 1 - 2 * MARGIN, "height": None, "stacked": True}
    words = where.lower().replace("-", " ").replace(",", " ").split()
    numbers = [_percent(name, where, word) for word in words if word not in PLACES_DOWN + PLACES_ACROSS]
    if len(words) == 4 and len(numbers) == 4:
        return dict(zip(("x", "y", "width", "height"), numbers), stacked=False)
    if len(words) == 1 and len(numbers) == 1:
        return {"x": MARGIN, "y": None, "width": 1 - 2 * MARGIN, "height": numbers[0], "stacked": True}
    sides = _sides(name, where, words)
    height, width = sides["down"][1] or 1 / 3, sides["across"][1]
    width = width or (1 - 2 * MARGIN if sides["across"][0] == "center" else 0.5 - MARGIN)
    y = {"top": 0.0, "middle": (1 - height) / 2, "bottom": 1 - height}[sides["down"][0]]
    edge = MARGIN if width <= 1 - 2 * MARGIN else 0.0
    x = {"left": edge, "center": (1 - width) / 2, "right": 1 - edge - width}[sides["across"][0]]
    return {"x": x, "y": y, "width": width, "height": height, "stacked": False}


def _sides(name: str, where: str, words: list[str]) -> dict:
    """`bottom 10% left 40%` -> {"down": ("bottom", 0.1), "across": ("left", 0.4)}."""
    sides = {"down": ("middle", None), "across": ("center", None)}
    axis = None
    for word in words:
        if word in PLACES_DOWN or word in PLACES_ACROSS:
            axis = "down" if word in PLACES_DOWN else "across"
            sides[axis] = (word, None)
        elif axis is None or sides[axis][1] is not None:
            raise InputError(f"{name}: {shown(where)} is not a place; {PLACE_HELP}")
        else:
            sides[axis] = (sides[axis][0], _percent(name, where, word))
    return sides


def _percent(name: str, where: str, word: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d+)?%", word) or float(word[:-1]) > 100:
        raise InputError(f'{name}: {shown(where)} is not a place; {PLACE_HELP}; quote the text to keep an " @ " in it')
    return float(word[:-1]) / 100
