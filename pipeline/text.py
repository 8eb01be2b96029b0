"""Texts of a prompt: the strings in its quotes, which the decoder draws, and what can be encoded at all.

Follows diffusers 0.42.1 `pipeline_glm_image.py` where it says "reference".
"""

import re
from collections.abc import Sequence

from .errors import InputError

MAX_PROMPT = 1 << 16  # characters
MAX_TEXT = 2048  # bytes of one text to draw, its end included; the reference pipeline's limit
MAX_TEXTS, MAX_TEXT_BYTES = 256, 8192  # of one image: far more than can be read on it
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
    closings, texts, end = _closings(prompt), [], -1
    for i in sorted(closings):
        if i > end and _opens(prompt, i):
            end = closings[i]
            texts.append(prompt[i + 1 : end])
    return [text for text in texts if text.strip()]


def _opens(prompt: str, i: int) -> bool:
    quote, before = prompt[i], prompt[i - 1 : i]
    if quote == "'":
        return not _in_word(before)
    if quote == '"':
        return not before.isdigit()  # 5" is five inches
    return quote in QUOTES


def _closings(prompt: str) -> dict[int, int]:
    """Place of each quote -> of the one that closes it, where there is one; quotes of the same style may nest.

    Takes time in proportion to the prompt, however many quotes stay open.
    """
    found = {}
    for opener, closers in QUOTES.items():
        waiting: list[int] = []
        for mark in re.finditer(f"[{opener}{closers}]", prompt):
            i = mark.start()
            if mark[0] not in closers or _is_apostrophe(prompt, i):
                if mark[0] == opener:
                    waiting.append(i)
            elif opener in closers:  # one mark for both ends: it closes all that waited, and may open
                found |= dict.fromkeys(waiting, i)
                waiting = [i]
            elif waiting:
                found[waiting.pop()] = i
    return found


def _is_apostrophe(prompt: str, i: int) -> bool:
    """Whether the mark at `i` belongs to a word: it's, rock 'n roll, the '90s."""
    return prompt[i] in "'’" and _in_word(prompt[i + 1 : i + 2])


def _in_word(character: str) -> bool:
    return character.isalnum() and character < LAST_SPACED_SCRIPT


def check_prompt(prompt: str, empty: bool = False) -> None:
    """Refuse what no model takes as a prompt, before any work: other types, too much, and no text unless `empty`."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be a string, got {type(prompt).__name__}")
    if not prompt.strip() and not empty:
        raise InputError("the prompt is empty; describe the image, with the texts to draw in quotes")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"the prompt has {len(prompt):,} characters; at most {MAX_PROMPT:,} are read, shorten it")
    utf8(prompt)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts of one image that are no text or more than an image can show; each is read to `MAX_TEXT` bytes."""
    if len(texts) > MAX_TEXTS:
        raise InputError(f"{len(texts)} texts to draw in one image; at most {MAX_TEXTS} are taken")
    size = sum(min(len(utf8(text)), MAX_TEXT) for text in texts)
    if size > MAX_TEXT_BYTES:
        raise InputError(f"the texts to draw have {size:,} bytes; at most {MAX_TEXT_BYTES:,} are taken, shorten them")


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
