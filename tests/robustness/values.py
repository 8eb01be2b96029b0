"""Bad values of every kind, drawn by a seeded generator."""

import json
import random

import torch
from PIL import Image

STRINGS = (
    "", " ", "a", "\x00", "\ud83d", "a\ud800b", "\u202e", "‘’“”'\"„", "“" * 400, "'" * 400, "{{ 7 * 7 }}", "<b>",
    "[[a|b]]",
    "../../etc/passwd", "/dev/zero", "C:\\x", "a/b/c/d", "NaN", "1e999", "-0", "None", "<|image|>",
    "<sop>1 1<eop>", "猫" * 300, "\x1b[31m", "\r\n" * 50, "%s%n", "🐈‍⬛", "x" * 5000, "\ufeff", "null", "[]", "{}",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 31, 32, 33, 64, 1000, 4096, 4128, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, 10**30,
 -(2**63) - 1,    0.0, -0.0, 0.5, 1.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip


def string(draw: random.Random) -> str:
    """One of the usual troublemakers, alone or several, or characters from all of Unicode."""
    kind = draw.random()
    if kind < 0.6:
        return draw.choice(STRINGS)
    if kind < 0.8:
        return "".join(draw.choices(STRINGS, k=3))
    return "".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(40)))


def number(draw: random.Random):
    return draw.choice(NUMBERS)


def plain(draw: random.Random, depth: int = 0):
    """A value that JSON can hold, nested a few times at most."""
    make = draw.choice((string, number, nothing, many, mapping) if depth < 3 else (string, number, nothing))
    return make(draw, depth + 1) if make in (many, mapping) else make(draw)


def value(draw: random.Random):
    """Anything that a caller of the Python API may pass."""
    foreign = (b"bytes", torch.zeros(2), Image.new("L", (3, 3)), object(), string, (1, 2), {1})
    return draw.choice(foreign) if draw.random() < 0.3 else plain(draw)


def nothing(draw: random.Random) -> None:
    return None


def many(draw: random.Random, depth: int = 1) -> list:
    return [plain(draw, depth) for _ in range(draw.randrange(5))]


def mapping(draw: random.Random, depth: int = 1) -> dict:
    return {string(draw): plain(draw, depth) for _ in range(draw.randrange(4))}


def changed_json(draw: random.Random, data):
    """JSON of the same build with some values replaced, dropped, or added."""
    data = json.loads(json.dumps(data))
    for _ in range(draw.randint(1, 3)):
        where = _somewhere(draw, data)
        if where is None:
            return plain(draw)
        holder, key = where
        if draw.random() < 0.25:
            del holder[key]
        else:
            holder[key] = plain(draw)
    return data


def _somewhere(draw: random.Random, data):
    """A random (holder, key) in nested JSON."""
    places = []

    def walk(item):
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, below in pairs:
            places.append((item, key))
            walk(below)

    walk(data)
    return draw.choice(places) if places else None


def json_text(draw: random.Random, data) -> str:
    """The text of changed JSON, itself sometimes cut, doubled, deep or no JSON."""
    kind = draw.random()
    if kind < 0.75:
        text = json.dumps(changed_json(draw, data))
    elif kind < 0.85:
        text = json.dumps(data)[: draw.randrange(1 + len(json.dumps(data)))]
    else:
        text = draw.choice(
            ["", "[" * 50_000, '{"a":' * 50_000, "1" * 6000, "\x00", "null", "[]", "\ufeff{}", string(draw)]
        )
    return text


def damaged(draw: random.Random, data: bytes) -> bytes:
    """A file with bytes changed near its start, cut, grown or replaced."""
    kind = draw.random()
    if kind < 0.6:
        broken = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            broken[draw.randrange(min(len(broken), 2000))] = draw.randrange(256)
        return bytes(broken)
    if kind < 0.8:
        return data[: draw.randrange(len(data))]
    if kind < 0.9:
        return data + draw.randbytes(draw.randint(1, 100))
    return draw.randbytes(draw.randrange(200))
