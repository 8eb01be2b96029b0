"""A benchmark's report: Markdown, HTML, JSON and a contact sheet."""

import html
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw

from ..files import write_text
from .generate import image_path
from .prompts import Case
from .read import Reading, check_reader, open_image
from .scores import GroupScore, score_groups

SHEET_COLUMNS, SHEET_WIDTH, SHEET_LIMIT = 4, 256, 48
HEADINGS = ("regions", "images", "words", "word accuracy (95 %)", "NED (95 %)")
NOTE = (
    "Word accuracy: words asked for that OCR read exactly, in lower case. NED: 1 - edit distance / longer length, "
    "mean over words. Intervals: bootstrap over images."
)


def write_report(folder: Path, title: str, about: dict[str, str], cases: list[Case], readings: list[Reading]) -> str:
    """Write `report.md`, `report.html`, `report.json` and `sheet.png` into `folder`; return the Markdown."""
    check_reader(readings)
    scores = score_groups(readings)
    contact_sheet(cases, readings, folder).save(folder / "sheet.png")
    rows = [_row(score) for score in scores]
    lines = [f"# {title}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += ["", "| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", NOTE, "", "![images](sheet.png)", ""]
    text = "\n".join(lines)
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", _html(title, about, rows))
    content = {"title": title, "about": about, "scores": [asdict(score) for score in scores]}
    write_text(folder / "report.json", json.dumps(content, indent=2))
    return text


def contact_sheet(cases: list[Case], readings: list[Reading], folder: Path) -> Image.Image:
    """The first images in rows, each over what was asked for and what was read."""
    chosen = list(zip(cases, readings))[:SHEET_LIMIT]
    images = [_fit(open_image(image_path(folder, case)).convert("RGB")) for case, _ in chosen]
    cell = max(image.height for image in images) + 34
    rows = math.ceil(len(chosen) / SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (SHEET_WIDTH + 8), rows * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((case, reading), image) in enumerate(zip(chosen, images)):
        x, y = i % SHEET_COLUMNS * (SHEET_WIDTH + 8) + 4, i // SHEET_COLUMNS * cell + 2
        sheet.paste(image, (x, y))
        good = reading.correct == reading.words
        pen.text((x, y + image.height + 2), _ascii(" | ".join(case.texts)), fill="black")
        pen.text((x, y + image.height + 15), _ascii(" | ".join(reading.read)), fill="green" if good else "red")
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    return image.resize((SHEET_WIDTH, round(image.height * SHEET_WIDTH / image.width)))


def _ascii(text: str, longest: int = 42) -> str:
    """Text that Pillow's built-in font can draw."""
    text = text.encode("ascii", "replace").decode()
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _row(score: GroupScore) -> tuple[str, ...]:
    accuracy = f"{score.accuracy:.3f} ({score.accuracy_low:.3f} to {score.accuracy_high:.3f})"
    ned = f"{score.ned:.3f} ({score.ned_low:.3f} to {score.ned_high:.3f})"
    return score.group, str(score.images), str(score.words), accuracy, ned


def _html(title: str, about: dict[str, str], rows: list[tuple[str, ...]]) -> str:
    def cells(values: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    items = "".join(f"<li>{html.escape(key)}: {html.escape(value)}</li>" for key, value in about.items())
    table = cells(HEADINGS, "th") + "".join(cells(row, "td") for row in rows)
    return (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em .8em;border:1px solid #ccc}"
        "table{border-collapse:collapse}img{max-width:100%}</style>"
        f"<h1>{html.escape(title)}</h1><ul>{items}</ul><table>{table}</table>"
        f"<p>{html.escape(NOTE)}</p><img src='sheet.png' alt='images'>\n"
    )
