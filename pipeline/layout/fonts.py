"""A font for every letter of a text.

Tried in this order: the font the region names, the two bundled ones (so that a sketch looks the same on every
machine), then whatever the system has. Each letter takes the first font that has it.
"""

import functools
import os
import struct
from pathlib import Path

from PIL import features

from ..errors import InputError
from .check import RIGHT_TO_LEFT
from .regions import TextRegion

FONTS = Path(__file__).parents[2] / "fonts"
BUNDLED = [FONTS / "SketchSansLatin.ttf", FONTS / "SketchSansCJK.ttf"]
FONT_FOLDERS = [
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts",
]  # fmt: skip


def region_fonts(index: int, region: TextRegion) -> dict[str, Path]:
    """Letter -> font file. A letter no font has, or a script pillow cannot shape, is an `InputError` naming it."""
    letters = sorted(set(region.text) - set("\n\t "))
    if RIGHT_TO_LEFT.search(region.text):
        return _shaped_font(index, region, letters)
    named = [_named_font(index, region.font)] if region.font else []
    fonts = {" ": (named + BUNDLED)[0]}
    for letter in letters:
        fonts[letter] = _font_with(letter, named) or _missing(index, region, letter)
    return fonts


def _shaped_font(index: int, region: TextRegion, letters: list[str]) -> dict[str, Path]:
    """Right-to-left text is shaped as a whole, so that one font must have all of it."""
    if not features.check("raqm"):
        raise InputError(
            f"region {index + 1}: right-to-left text needs pillow with libraqm and fribidi; install fribidi, "
            "or draw the layout without a sketch"
        )
    candidates = [_named_font(index, region.font)] if region.font else [*BUNDLED, *system_fonts()]
    for path in candidates:
        if all(ord(letter) in coverage(path) for letter in letters):
            return dict.fromkeys([*letters, " "], path)
    raise InputError(f"region {index + 1}: no font found has all its right-to-left letters; install one that does")


def _font_with(letter: str, named: list[Path]) -> Path | None:
    for path in named + BUNDLED:
        if ord(letter) in coverage(path):
            return path
    return _system_font_with(letter)


@functools.lru_cache(maxsize=4096)
def _system_font_with(letter: str) -> Path | None:
    return next((path for path in system_fonts() if ord(letter) in coverage(path)), None)


def _missing(index: int, region: TextRegion, letter: str) -> Path:
    named = f"{region.font}, " if region.font else ""
    raise InputError(
        f"region {index + 1}: no font has {letter!r} (U+{ord(letter):04X}); tried {named}the bundled fonts and "
        f"{len(system_fonts())} of the system; install a font that has it or change the text"
    )


def _named_font(index: int, name: str) -> Path:
    """A family or file name, compared without case, spaces and hyphens, among bundled and system fonts."""
    wanted = _plain(Path(name).stem if name.lower().endswith((".ttf", ".otf", ".ttc")) else name)
    fonts = {_plain(path.stem): path for path in [*system_fonts(), *sorted(FONTS.glob("*.ttf"))]}
    found = fonts.get(wanted) or fonts.get(wanted + "regular")
    if found:
        return found
    near = sorted(path.stem for key, path in fonts.items() if wanted[:4] and wanted[:4] in key)[:5]
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise InputError(f"region {index + 1}: font {name!r} is not installed{hint}; leave it empty for the bundled ones")


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


@functools.lru_cache(maxsize=1)
def system_fonts() -> list[Path]:
    """Scalable fonts installed on this machine, in a fixed order."""
    found = []
    for folder in FONT_FOLDERS:
        for root, _, names in os.walk(Path(folder).expanduser()):
            found += [Path(root) / name for name in names if name.lower().endswith((".ttf", ".otf", ".ttc"))]
    return sorted(found)


@functools.lru_cache(maxsize=512)
def coverage(path: Path) -> frozenset[int]:
    """Code points the font file maps to a glyph; empty for a file that is no sfnt font. Reads `cmap` 4 and 12."""
    data = path.read_bytes()
    try:
        start = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
        count = struct.unpack_from(">H", data, start + 4)[0]
        tables = [struct.unpack_from(">4sIII", data, start + 12 + 16 * i) for i in range(count)]
        offset = next((offset for tag, _, offset, _ in tables if tag == b"cmap"), None)
        if offset is None:
            return frozenset()
        codes = set()
        for i in range(struct.unpack_from(">H", data, offset + 2)[0]):
            platform, encoding, at = struct.unpack_from(">HHI", data, offset + 4 + 8 * i)
            if (platform, encoding) in ((0, 3), (0, 4), (0, 6), (3, 1), (3, 10)):
                codes |= _subtable(data, offset + at)
        return frozenset(codes)
    except struct.error:
        return frozenset()  # cut short or damaged: it has no letter for us


def _subtable(data: bytes, at: int) -> set[int]:
    kind = struct.unpack_from(">H", data, at)[0]
    if kind == 4:
        return _segments(data, at)
    codes = set()
    if kind == 12:
        for i in range(struct.unpack_from(">I", data, at + 12)[0]):
            first, last, _ = struct.unpack_from(">III", data, at + 16 + 12 * i)
            codes.update(range(first, min(last, 0x10FFFF) + 1))
    return codes


def _segments(data: bytes, at: int) -> set[int]:
    """Format 4: ranges with an offset each; a code counts when its glyph is not 0."""
    n = struct.unpack_from(">H", data, at + 6)[0] // 2
    ends = struct.unpack_from(f">{n}H", data, at + 14)
    starts = struct.unpack_from(f">{n}H", data, at + 16 + 2 * n)
    deltas = struct.unpack_from(f">{n}H", data, at + 16 + 4 * n)
    table = at + 16 + 6 * n
    codes = set()
    for i, reach in enumerate(struct.unpack_from(f">{n}H", data, table)):
        for code in range(starts[i], min(ends[i], 0xFFFE) + 1):
            glyph = code
            if reach:
                glyph = struct.unpack_from(">H", data, table + 2 * i + reach + 2 * (code - starts[i]))[0]
            if glyph and (glyph + deltas[i]) % 65536:
                codes.add(code)
    return codes
