"""The sketch: text inside its box, letters from real fonts, missing ones named."""

import numpy as np
import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.layout import fonts, sketch
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from PIL import Image, ImageFont


def draw(text, box=(0.2, 0.3, 0.6, 0.2), size=(256, 512), **more):
    return sketch.render(Layout((TextRegion(text, *box, **more),)), *size)


def ink(image, box, slack=2):
    """(pixels that are not white inside the box, outside of it)."""
    dark = np.asarray(image.convert("L")) < 250
    height, width = dark.shape
    inside = np.zeros_like(dark)
    x, y, w, h = box
    top, bottom = int(y * height) - slack, int((y + h) * height) + slack
    inside[top:bottom, int(x * width) - slack : int((x + w) * width) + slack] = True
    return int((dark & inside).sum()), int((dark & ~inside).sum())


@pytest.mark.parametrize(
    "text", ["OPEN 24h", "gjpqy ÄÖ", "营业时间：九点", "Mixed 文字 mix", "Привет", "many words " * 20]
)
@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_text_stays_in_its_box(text, direction):
    box = (0.2, 0.3, 0.6, 0.4)
    inside, outside = ink(draw(text, box, direction=direction), box)
    assert inside > 100
    assert outside == 0


def test_text_fills_its_box_in_one_direction():
    rows, columns = np.nonzero(np.asarray(draw("OPEN").convert("L")) < 128)
    assert np.ptp(columns) > 0.85 * 0.6 * 512 or np.ptp(rows) > 0.5 * 0.2 * 256


@pytest.mark.parametrize("align", ["left", "center", "right"])
def test_alignment_moves_the_text(align):
    columns = np.nonzero(np.asarray(draw("A", align=align).convert("L")) < 128)[1]
    expected = {"left": 0.2 * 512, "center": 0.5 * 512, "right": 0.8 * 512}[align]
    got = {"left": columns.min(), "center": columns.mean(), "right": columns.max()}[align]
    assert got == pytest.approx(expected, abs=8)


def test_vertical_columns_run_from_right_to_left():
    image = (
        np.asarray(draw("一一一一川川川川", (0.3, 0.1, 0.4, 0.8), (256, 256), direction="vertical").convert("L")) < 128
    )
    bars = image.sum(axis=1).argmax()  # the longest row of ink belongs to a flat stroke
    assert np.nonzero(image[bars])[0].mean() > 128


def test_colour_and_contrast():
    assert (np.asarray(draw("A", color="#ff0000")) == (255, 0, 0)).all(-1).any()
    dark = sketch.render(Layout((TextRegion("A", 0.1, 0.1, 0.8, 0.8),)), 64, 64, Image.new("RGB", (30, 30), "#101010"))
    assert np.asarray(dark).max() > 240


def test_a_background_picture_is_resized_to_the_page():
    page = sketch.render(Layout(()), 64, 128, Image.new("L", (10, 10), 77))
    assert page.size == (128, 64) and page.getpixel((0, 0)) == (77, 77, 77)
    with pytest.raises(InputError, match="'nocolor' is not a colour"):
        sketch.render(Layout(()), 64, 64, "nocolor")


def test_a_letter_no_font_has_is_named(monkeypatch):
    monkeypatch.setattr(fonts, "FONT_FOLDERS", [])
    fonts.system_fonts.cache_clear()
    fonts._system_font_with.cache_clear()
    with pytest.raises(InputError, match=r"region 1: no font has '𐍈' \(U\+10348\); tried the bundled fonts and 0 of"):
        draw("A𐍈")
    fonts.system_fonts.cache_clear()
    fonts._system_font_with.cache_clear()


def test_an_unknown_font_is_named_with_what_is_near():
    with pytest.raises(
        InputError, match="region 1: font 'Sketch Sanz' is not installed; near it: SketchMono, SketchSans"
    ):
        draw("A", font="Sketch Sanz")
    with pytest.raises(InputError, match="font '../../etc/passwd' is not installed"):
        draw("A", font="../../etc/passwd")


def test_a_named_font_is_used_and_others_fill_its_gaps():
    found = fonts.region_fonts(0, TextRegion("A营", 0, 0, 1, 1, font="sketch sans cjk"))
    assert found["营"].name == "SketchSansCJK.ttf" and found["A"].name == "SketchSansLatin.ttf"


def test_the_small_checkpoints_lettering_fills_its_cells():
    word, cells = "WORD", (4 * 16, 32)
    page = draw(word, (0, 0, 1, 1), (32, 64), font="SketchMono")
    columns = np.nonzero((np.asarray(page.convert("L")) < 128).any(axis=0))[0]
    for i in range(len(word)):  # every letter stays in its 16 px
        inside = columns[(columns >= 16 * i) & (columns < 16 * i + 16)]
        assert 5 < len(inside) <= 16
    assert page.size == cells


def test_coverage_agrees_with_the_font_engine():
    for path in fonts.BUNDLED:
        font = ImageFont.truetype(str(path), 40)
        absent = bytes(font.getmask("\U0010ffff"))
        codes = fonts.coverage(path)
        for letter in "AzÄЖ营业あ。，€":
            assert (ord(letter) in codes) == (bytes(font.getmask(letter)) != absent), (path.name, letter)
    assert len(fonts.coverage(fonts.BUNDLED[1])) > 6763


def test_a_damaged_font_file_has_no_letters(tmp_path):
    whole = fonts.BUNDLED[0].read_bytes()
    for name, data in {"cut.ttf": whole[:300], "text.ttf": b"not a font at all", "empty.ttf": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert fonts.coverage(tmp_path / name) == frozenset()


def test_right_to_left_text_is_set_or_refused_clearly(monkeypatch):
    monkeypatch.setattr(fonts.features, "check", lambda name: False)
    with pytest.raises(InputError, match="region 1: right-to-left text needs pillow with libraqm"):
        draw("שלום")
    monkeypatch.setattr(fonts.features, "check", lambda name: True)
    monkeypatch.setattr(fonts, "system_fonts", list)
    with pytest.raises(InputError, match="no font found has all its right-to-left letters"):
        draw("שלום")


def test_the_same_layout_gives_the_same_pixels():
    assert draw("Same 一样").tobytes() == draw("Same 一样").tobytes()
