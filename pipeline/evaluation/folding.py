"""Text as it is compared with what OCR reads: characters that look alike on an image count as one.

Readers answer with the plain character of several that look the same: a straight apostrophe for a curly one, a
hyphen for a dash, ASCII for full width. The image is right all the same. Folding is Unicode's NFKC (full width,
ligatures, ℃, superscripts, the micro sign as the letter mu) after and before the tables below. It does not help with
what a reader never sees: rapidocr's PP-OCRv6 leaves out a lone I or l.
"""

import unicodedata

# Before NFKC, which would take these apart or turn them into letters.
_FIRST = {
    "'": "´",
    '"': "″‶",
    "°": "º˚∘",
    "": "\u00ad\u200b\u200c\u200d\u2060\ufeff",  # soft hyphen, joiners and marks without width
}
_LAST = {
    "'": "‘’‚‛′‵ʹʻʼʽ`",
    '"': "“”„‟«»〝〞",
    "-": "‐‑‒–—―−⁃",
    "/": "⁄∕",
    "x": "×",
    "·": "•∙⋅・",
    "~": "∼〜",
}


def _table(groups: dict[str, str]) -> dict[int, str]:
    return {ord(character): plain for plain, characters in groups.items() for character in characters}


FIRST, LAST = _table(_FIRST), _table(_LAST)


def fold(text: str) -> str:
    """Replace every character by the plain one of those that look like it."""
    return unicodedata.normalize("NFKC", text.translate(FIRST)).translate(LAST)
