"""The logs of the stages as one picture of curves, drawn with pillow: what training looked like."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

PANEL, MARGIN = (420, 220), 44  # px
# stage -> figures, and whether the axis is logarithmic
PANELS = {
    "vae": (("psnr",), False),
    "vision": (("tokens",), False),
    "planner": (("full", "preview", "counting"), True),
    "planner plans": (("plans",), False),
    "decoder": (("flow",), True),
    "decoder words": (("routing", "words"), False),
}
COLOURS = ("#2850c8", "#c82828", "#1e8c46")


def write_curves(runs: Path, out: Path) -> None:
    """`runs/STAGE/log.jsonl` of every stage -> one PNG, figures over minutes."""
    sheet = Image.new("RGB", (2 * PANEL[0], math.ceil(len(PANELS) / 2) * PANEL[1]), "white")
    for i, (name, (figures, logarithmic)) in enumerate(PANELS.items()):
        log = runs / name.split()[0] / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        sheet.paste(draw_panel(name, lines, figures, logarithmic), (i % 2 * PANEL[0], i // 2 * PANEL[1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def points_of(lines: list[dict], figure: str) -> list[tuple[float, float]]:
    """(minutes, value) of one figure; a line without a time belongs to the one before it."""
    points, minutes = [], 0.0
    for line in lines:
        minutes = line.get("seconds", 60 * minutes) / 60
        if figure in line:
            points.append((minutes, line[figure]))
    return points


def draw_panel(name: str, lines: list[dict], figures: tuple[str, ...], logarithmic: bool) -> Image.Image:
    """One panel of curves with its axes."""
    panel = Image.new("RGB", PANEL, "white")
    pen = ImageDraw.Draw(panel)
    curves = {figure: points_of(lines, figure) for figure in figures}
    scale = math.log10 if logarithmic else float
    values = [scale(max(value, 1e-4)) for points in curves.values() for _, value in points]
    last = max(minutes for points in curves.values() for minutes, _ in points)
    low, high = min(values), max(values)

    def place(minutes: float, value: float) -> tuple[float, float]:
        x = MARGIN + (PANEL[0] - MARGIN - 12) * minutes / last
        share = (scale(max(value, 1e-4)) - low) / max(high - low, 1e-9)
        return x, PANEL[1] - 28 - (PANEL[1] - 56) * share

    pen.rectangle((MARGIN, 28, PANEL[0] - 12, PANEL[1] - 28), outline="#bbbbbb")
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        value = 10**value if logarithmic else value
        pen.text((4, place(0, value)[1] - 6), f"{value:.3g}", fill="black")
    pen.text((MARGIN, PANEL[1] - 22), "0", fill="black")
    pen.text((PANEL[0] - 70, PANEL[1] - 22), f"{last:.0f} min", fill="black")
    pen.text((MARGIN, 8), name, fill="black")
    for i, (figure, points) in enumerate(curves.items()):
        pen.text((MARGIN + 130 + 80 * i, 8), figure, fill=COLOURS[i])
        pen.line([place(*point) for point in points], fill=COLOURS[i], width=2)
    return panel
