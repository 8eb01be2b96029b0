"""How large a text can be set in a box: estimated widths, line breaks and the font size that fits.

`js/layout_text.js` holds the same rule; `tests/data/layout_fit.json` keeps the two equal.
"""

import re
from collections.abc import Callable

LINE_HEIGHT = 1.2  # em

# Patterns are compiled when first used: importing ComfyUI nodes stays quick.
# East Asian wide characters and emoji: one em each; everything else is taken as NARROW em.
WIDE = (
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd]"
)
NARROW = 0.6
CLOSING = "[，。、！？；：）」』】》〉”’]"  # never first on a line
PIECE = rf"\s*(?:{WIDE}|(?:(?!{WIDE})\S)+){CLOSING}*"


def advance(text: str) -> float:
    """Estimated width of a line in em, without a font."""
    wide = len(re.findall(WIDE, text))
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
    return re.findall(PIECE, " ".join(paragraph.split()))


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
