"""The sketch of a layout: every text set in its box by pillow, with a real font that has its letters."""

import functools
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..errors import InputError
from .fonts import region_fonts
from .regions import Layout, TextRegion
from .text_fit import LINE_HEIGHT, fitting_size, vertical_size, wrap

BASELINE = 0.36  # em below the middle of a line: capitals look centred
MEASURE = 100  # px at which lengths are measured; they scale with the size


def render(layout: Layout, height: int, width: int, background: str | Image.Image = "#ffffff") -> Image.Image:
    """RGB picture of `width` x `height` px with the text of every region in its box, as large as fits."""
    page = _page(background, height, width)
    for index, region in enumerate(layout.regions):
        _draw_region(page, index, region)
    return page


def _page(background: str | Image.Image, height: int, width: int) -> Image.Image:
    if isinstance(background, Image.Image):
        return background.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    try:
        return Image.new("RGB", (width, height), ImageColor.getrgb(background)[:3])
    except ValueError:
        raise InputError(f"background {background!r} is not a colour; use a form like #ffffff") from None


def _draw_region(page: Image.Image, index: int, region: TextRegion) -> None:
    fonts = region_fonts(index, region)
    left, top, right, bottom = region.pixels(page.height, page.width)
    color = region.color or _contrast(page, (left, top, right, bottom))
    draw = ImageDraw.Draw(page)
    if region.direction == "vertical":
        _draw_columns(draw, region, fonts, (left, top, right, bottom), color)
        return
    size, lines = _fitted(region.text, fonts, right - left, bottom - top)
    step = LINE_HEIGHT * size
    y = (top + bottom - step * len(lines)) / 2 + step / 2 + BASELINE * size
    for line in lines:
        slack = right - left - _length(line, fonts, size)
        x = left + {"left": 0.0, "center": slack / 2, "right": slack}[region.align]
        _draw_line(draw, (x, y), line, fonts, size, color)
        y += step


def _fitted(text: str, fonts: dict[str, Path], width: int, height: int) -> tuple[int, list[str]]:
    """Whole pixels of the largest size at which the text fits, and its lines at that size."""

    def measure(line: str) -> float:
        return _length(line, fonts, MEASURE) / MEASURE

    size = max(1, int(fitting_size(text, width, height, measure)))
    return size, wrap(text, width / size, measure) or text.splitlines()


def _draw_columns(
    draw: ImageDraw.ImageDraw, region: TextRegion, fonts: dict[str, Path], box: tuple[int, int, int, int], color: str
) -> None:
    """Characters stacked from the top, columns from right to left, centred in the box."""
    left, top, right, bottom = box
    text = "".join(region.text.split())
    size = max(1, int(vertical_size(text, right - left, bottom - top)))
    rows = max(1, int((bottom - top) / (LINE_HEIGHT * size)))
    columns = [text[i : i + rows] for i in range(0, len(text), rows)]
    step = LINE_HEIGHT * size
    x = (left + right + step * len(columns)) / 2 - step / 2
    for column in columns:
        y = top + {"left": 0.0, "center": 0.5, "right": 1.0}[region.align] * (bottom - top - step * len(column))
        for letter in column:
            y += step
            draw.text((x, y - step / 2 + BASELINE * size), letter, color, _font(fonts[letter], size), anchor="ms")
        x -= step


def _contrast(page: Image.Image, box: tuple[int, int, int, int]) -> str:
    """Black or white, whichever stands out from what is in the box."""
    grey = page.crop(box).convert("L").resize((1, 1), Image.Resampling.BOX)
    return "#000000" if grey.getpixel((0, 0)) > 127 else "#ffffff"


@functools.lru_cache(maxsize=64)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def _runs(line: str, fonts: dict[str, Path]) -> list[tuple[str, Path]]:
    """A line cut where the font changes; spaces stay with the letters before them."""
    runs = []
    for letter in line:
        path = runs[-1][1] if runs and letter == " " else fonts[letter]
        if runs and runs[-1][1] == path:
            runs[-1] = (runs[-1][0] + letter, path)
        else:
            runs.append((letter, path))
    return runs


def _length(line: str, fonts: dict[str, Path], size: int) -> float:
    return sum(_font(path, size).getlength(text) for text, path in _runs(line, fonts))


def _draw_line(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], line: str, fonts: dict[str, Path], size: int, color: str
) -> None:
    x, y = at
    for text, path in _runs(line, fonts):
        draw.text((x, y), text, color, _font(path, size), anchor="ls")
        x += _font(path, size).getlength(text)
