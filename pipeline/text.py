"""Texts of a prompt: the strings in its quotes, which the decoder draws, and what can be encoded at all.

Follows diffusers 0.42.1 `pipeline_glm_image.py` where it says "reference".
"""

import re
from collections.abc import Sequence

from .errors import InputError

SURROGATE = re.compile("[\ud800-\udfff]")
# In this order, and only these styles: diffusers' `get_glyph_texts`, with which the decoder's texts must agree.
REFERENCE_QUOTES = (r"'([^']*)'", "\u201c([^\u201c\u201d]*)\u201d", r'"([^"]*)"', "「([^「」]*)」")
QUOTES = {"'": "'", '"': '"', "‘": "’", "“": "”", "„": "“”", "「": "」", "『": "』", "«": "»"}
LAST_SPACED_SCRIPT = "\u0590"  # Latin, Greek, Cyrillic and Armenian lie below: only they have apostrophes


def quoted_texts(prompt: str, mode: str = "reference") -> list[str]:
    """The quoted strings of a prompt, which are the texts to draw.

    "reference" is what diffusers does, faults included: an apostrophe opens a string, ‘’ 『』 «» are not read, and
    strings come style by style. "prompt_order" reads apostrophes and all quote styles, in the prompt's order.
    """
    if mode == "reference":
        return [text for pattern in REFERENCE_QUOTES for text in re.findall(pattern, prompt)]
    if mode == "prompt_order":
        return _quoted(prompt)
    raise InputError(f"glyph_mode {mode!r} is not known; use 'reference' or 'prompt_order'")


def _quoted(prompt: str) -> list[str]:
    """Outermost quoted strings from left to right; a quote that never closes is read as plain text."""
    texts, i = [], 0
    while i < len(prompt):
        end = _closing(prompt, i) if _opens(prompt, i) else None
        if end is None:
            i += 1
            continue
        texts.append(prompt[i + 1 : end])
        i = end + 1
    return [text for text in texts if text.strip()]


def _opens(prompt: str, i: int) -> bool:
    quote, before = prompt[i], prompt[i - 1 : i]
    if quote == "'":
        return not _in_word(before)
    if quote == '"':
        return not before.isdigit()  # 5" is five inches
    return quote in QUOTES


def _closing(prompt: str, start: int) -> int | None:
    """Index of the quote that closes the one at `start`; quotes of the same style may nest."""
    opener, closers, depth = prompt[start], QUOTES[prompt[start]], 1
    for i in range(start + 1, len(prompt)):
        if prompt[i] in closers and not _is_apostrophe(prompt, i):
            depth -= 1
        elif prompt[i] == opener and opener not in closers:
            depth += 1
        if depth == 0:
            return i
    return None


def _is_apostrophe(prompt: str, i: int) -> bool:
    """Whether the mark at `i` belongs to a word: it's, rock 'n roll, the '90s."""
    return prompt[i] in "'’" and _in_word(prompt[i + 1 : i + 2])


def _in_word(character: str) -> bool:
    return character.isalnum() and character < LAST_SPACED_SCRIPT


def utf8(text: str) -> bytes:
    """The text's bytes; an unpaired surrogate has none and is refused."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise InputError(f"character {error.start} ({bad!r}) is an unpaired surrogate; enter it again") from None


def shown(value: object, limit: int = 40) -> str:
    """A foreign value as it may stand in a message: its `repr`, or the start of a long one."""
    if isinstance(value, str):
        value = value[: limit + 1]  # the rest would only be quoted in vain
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python writes; a list that holds itself
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "..."


def enclosed(text: str, quotes: Sequence[str]) -> str | None:
    """`text` in the first pair of quotation marks that does not occur in it; None if every pair does."""
    pair = next((pair for pair in quotes if not set(pair) & set(text)), None)
    return pair and pair[0] + text + pair[-1]
