"""Draw what `glm-image bench --growth --peer` measured: time against tokens and against pixels, ours and the peers'.

    glm-image bench --growth --peer | tail -n 1 > docs/benchmarks/growth.json
    python tools/plot_bench.py docs/benchmarks/growth.json docs/images/growth.png

Needs Pillow only. Each point is the fastest of its calls, which other work on the machine disturbed least. All axes are
logarithmic, so equal slopes are equal laws of growth.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path(__file__).resolve().parent.parent / "fonts" / "SketchSansLatin.ttf"
SCALE = 3  # drawn so much larger, then shrunk: smooth lines
WIDTH, HEIGHT = 1240, 570
LEFT, TOP, PANEL_WIDTH, PANEL_HEIGHT, GAP = 90, 96, 490, 400, 130  # of the frames, in pixels
INK, GREY, GRID = "#202124", "#5f6368", "#e3e5e8"
COLOURS = {"planner decode": "#1a73e8", "decoder step": "#188038", "vae decode": "#d93025"}
PEERS = {"planner decode": "transformers", "decoder step": "diffusers", "vae decode": "diffusers"}
TITLES = {"planner decode": "planner decode", "decoder step": "decoder step", "vae decode": "VAE decode"}
MARK = 5  # radius of a point
ROOM = 1.25  # factor between the outermost value and the frame


@dataclass(frozen=True)
class Line:
    """Points (x, seconds) of one stage, ours or the peer's."""

    stage: str
    peer: bool
    points: tuple[tuple[float, float], ...]

    @property
    def label(self) -> str:
        return f"{TITLES[self.stage]}, {PEERS[self.stage] if self.peer else 'ours'}"


@dataclass(frozen=True)
class Panel:
    """Lines in one frame; `ticks` are the x values that get a label."""

    title: str
    below: str
    lines: list[Line]
    ticks: dict[float, str]


def read(path: Path) -> dict:
    """The report, which is the last line of the bench's output."""
    try:
        return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise SystemExit(f"{path} does not end in the JSON line of `glm-image bench --growth`: {error}") from None


def panels(report: dict) -> list[Panel]:
    """The planner against tokens, decoder and VAE against pixels."""
    results = report.get("results", [])
    planned = [r for r in results if r["stage"] == "planner decode"]
    drawn = [r for r in results if r["stage"] in ("decoder step", "vae decode")]
    if len({r["amount"] for r in planned}) < 2 or len({r["size"] for r in drawn}) < 2:
        raise SystemExit("the report holds no growth; make it with `glm-image bench --growth --peer`")
    tokens = {r["amount"]: f"{r['amount'] + 1}" for r in planned}  # the first token comes with the prompt
    sizes = {_pixels(r): r["size"] for r in drawn}
    return [
        Panel("Time against tokens", "tokens of a plan", list(_lines(planned, lambda r: r["amount"])), tokens),
        Panel("Time against pixels", "pixels of the image", list(_lines(drawn, _pixels)), sizes),
    ]


def _pixels(result: dict) -> int:
    width, height = map(int, result["size"].split("x"))
    return width * height


def _lines(results: list[dict], x: Callable[[dict], float]) -> Iterator[Line]:
    """Ours and, where it was measured, the peer's, of every stage."""
    for stage in dict.fromkeys(r["stage"] for r in results):
        for peer, key in ((False, "fastest"), (True, "peer_fastest")):
            points = sorted((x(r), r[key]) for r in results if r["stage"] == stage and r[key] is not None)
            if points:
                yield Line(stage, peer, tuple(points))


# ---- scales ----


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis: values `low`..`high` -> pixels `start`..`stop`."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, stop: float) -> "Scale":
        values = list(values)
        return cls(min(values) / ROOM, max(values) * ROOM, start, stop)

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times the powers of ten that lie on the axis."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [step * 10.0**p for p in powers for step in (1, 2, 5) if self.low <= step * 10.0**p <= self.high]


def duration(seconds: float) -> str:
    """A round time with its unit, such as "20 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.999:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


# ---- drawing ----


class Canvas:
    """Pillow's drawing in final pixels, on a picture `SCALE` times as large."""

    def __init__(self):
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points, colour: str, width: float = 1.0) -> None:
        self.draw.line([(SCALE * x, SCALE * y) for x, y in points], colour, round(SCALE * width), joint="curve")

    def dashes(self, points, colour: str, width: float, length: float = 6.0) -> None:
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            count = max(int(math.hypot(x1 - x0, y1 - y0) / length), 1)
            for k in range(0, count, 2):
                a, b = k / count, min(k + 1, count) / count
                ends = [(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in (a, b)]
                self.line(ends, colour, width)

    def mark(self, x: float, y: float, colour: str, hollow: bool) -> None:
        box = [SCALE * (x - MARK), SCALE * (y - MARK), SCALE * (x + MARK), SCALE * (y + MARK)]
        self.draw.ellipse(box, "white" if hollow else colour, colour, 2 * SCALE)

    def text(self, x: float, y: float, text: str, size: int = 15, colour: str = INK, anchor: str = "mm") -> None:
        font = ImageFont.truetype(FONT, size * SCALE)
        self.draw.text((SCALE * x, SCALE * y), text, colour, font, anchor)


def draw(report: dict) -> Image.Image:
    """Both panels side by side under a line that says what was measured."""
    both, canvas = panels(report), Canvas()
    canvas.text(LEFT, 24, about(report), 15, GREY, "lm")
    for k, panel in enumerate(both):
        draw_panel(canvas, panel, LEFT + k * (PANEL_WIDTH + GAP))
    return canvas.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def about(report: dict) -> str:
    peers = "".join(f", {name} {version}" for name, version in report["peers"].items())
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    return (
        f"{report['model']}; {report['device']}, {threads}, {report['dtype']}, "
        f"torch {report['torch']}{peers}, {report['date']}; fastest of a few calls"
    )


def draw_panel(canvas: Canvas, panel: Panel, left: float) -> None:
    right, bottom = left + PANEL_WIDTH, TOP + PANEL_HEIGHT
    across = Scale.over((x for line in panel.lines for x, _ in line.points), left, right)
    down = Scale.over((y for line in panel.lines for _, y in line.points), bottom, TOP)
    canvas.text(left, TOP - 26, panel.title, 19, INK, "lm")
    for seconds in down.ticks():
        canvas.line([(left, down(seconds)), (right, down(seconds))], GRID)
        canvas.text(left - 10, down(seconds), duration(seconds), 14, GREY, "rm")
    for value, label in panel.ticks.items():
        canvas.line([(across(value), TOP), (across(value), bottom)], GRID)
        canvas.text(across(value), bottom + 18, label, 14, GREY)
    canvas.line([(left, TOP), (left, bottom), (right, bottom)], GREY, 1.5)
    canvas.text((left + right) / 2, bottom + 46, panel.below, 15)
    for line in panel.lines:
        draw_line(canvas, line, [(across(x), down(y)) for x, y in line.points])
    draw_legend(canvas, panel.lines, left + 18, TOP + 18)


def draw_line(canvas: Canvas, line: Line, points: list[tuple[float, float]]) -> None:
    colour = COLOURS[line.stage]
    (canvas.dashes if line.peer else canvas.line)(points, colour, 2.5)
    for x, y in points:
        canvas.mark(x, y, colour, hollow=line.peer)


def draw_legend(canvas: Canvas, lines: list[Line], x: float, y: float) -> None:
    """At the upper left, where no rising line comes."""
    for k, line in enumerate(lines):
        height = y + 24 * k
        draw_line(canvas, line, [(x, height), (x + 44, height)])
        canvas.text(x + 58, height, line.label, 15, INK, "lm")


def main(source: str, target: str) -> None:
    draw(read(Path(source))).save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python tools/plot_bench.py REPORT.json PICTURE.png")
    main(*sys.argv[1:])
