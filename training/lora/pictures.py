"""A folder of images with captions, as people have them: a text file beside each image, or one table for all.

The table is `metadata.jsonl` or `metadata.csv` with `file_name` and a caption, as the imagefolder of Hugging Face's
`datasets` has it; it names files relative to its own folder.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...pipeline.errors import InputError
from ...pipeline.geometry import check_size, size_like
from ...pipeline.images import BROKEN
from ...pipeline.text import check_prompt, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLES = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("text", "caption", "prompt")  # columns of a table that may hold the caption, the first that is there
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange height and width
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """An image file with what it shows in words, and the size in pixels (height, width) that it is trained at."""

    path: Path
    caption: str
    size: tuple[int, int]


def read_folder(folder: Path, pixels: int | None = None) -> list[Picture]:
    """Every captioned image of a folder and the folders in it, by name; none is decoded yet.

    Raises `InputError` for a folder without images, for images without captions, and for files that are no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with images and their captions")
    tables = sorted(path for name in TABLES for path in folder.rglob(name))
    captions = dict(pair for table in tables for pair in _rows(table)) if tables else _beside(folder)
    if not captions:
        raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)}); give a folder with images and captions")
    return [_picture(path, captions[path], pixels) for path in sorted(captions)]


def _beside(folder: Path) -> dict[Path, str]:
    """Image -> the text of the file beside it that has its name and ends in .txt."""
    images = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    without = sorted(path for path in images if not path.with_suffix(".txt").is_file())
    if without:
        raise InputError(
            f"{len(without)} of {len(images)} images have no caption, first {without[0]}; write each into a .txt file "
            f"of the image's name, or all into {' or '.join(TABLES)}"
        )
    return {path: _text(path.with_suffix(".txt")).strip() for path in images}


def _rows(table: Path) -> Iterator[tuple[Path, str]]:
    """The images and captions of a table."""
    for number, row in _entries(table):
        column = next((name for name in CAPTIONS if row.get(name)), None)
        if not isinstance(row.get("file_name"), str) or column is None:
            raise InputError(f"{table} entry {number} has no file_name or none of {', '.join(CAPTIONS)}")
        path = table.parent / row["file_name"]
        if not path.is_file():
            raise InputError(f"{table} entry {number} names {shown(row['file_name'])}, which is not there")
        yield path, str(row[column]).strip()


def _entries(table: Path) -> Iterator[tuple[int, dict]]:
    if table.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(_text(table))), start=1)
        return
    for number, line in enumerate(_text(table).splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{table} line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"{table} line {number} is no JSON object")
            yield number, row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as UTF-8: {error}") from None


def _picture(path: Path, caption: str, pixels: int | None) -> Picture:
    try:
        check_prompt(caption)
    except InputError as error:
        raise InputError(f"caption of {path}: {error}") from None
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except BROKEN as error:
        raise InputError(f"image {path} cannot be read: {error or type(error).__name__}") from None
    height, width = (width, height) if turned else (height, width)
    size = size_like(height, width, pixels or height * width)
    try:
        check_size(*size)
    except InputError as error:
        raise InputError(f"image {path}: {error}") from None
    return Picture(path, caption, size)
