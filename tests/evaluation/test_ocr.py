"""Scores of words read back, and the two engines behind one call."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.evaluation import ocr
from comfyui_glm_image.pipeline.evaluation.folding import fold
from comfyui_glm_image.pipeline.evaluation.ocr import Word
from comfyui_glm_image.pipeline.layout import sketch
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from PIL import Image

LAYOUT = Layout((TextRegion("OPEN 24h", 0.1, 0.1, 0.8, 0.25), TextRegion("Fresh bread", 0.1, 0.6, 0.8, 0.2)))


def word(text, x=0.2, y=0.15, width=0.2, height=0.1, confidence=90.0):
    return Word(text, x, y, width, height, confidence)


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
)
def test_edit_distance(a, b, distance):
    assert ocr.edit_distance(a, b) == distance == ocr.edit_distance(b, a)


def test_words_are_lower_case_without_outer_marks_and_wide_characters_stand_alone():
    assert ocr.split_words('"OPEN," it\'s 营业中! -') == ["open", "it's", "营", "业", "中"]


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ("it’s", "it's"),
        ("it´s", "it's"),
        ("20℃", "20°C"),
        ("20 °C", "20 ºC"),
        ("5\u00b5m", "5\u03bcm"),  # micro sign, Greek mu
        ("9–17", "9-17"),
        ("ＯＰＥＮ２４", "OPEN24"),
        ("ﬁne ﬂour", "fine flour"),
        ("3×4", "3x4"),
        ("5″2", '5"2'),
        ("soft\u00adware", "software"),
        ("m²", "m2"),
        ("½", "1/2"),
        ("wait…what", "wait...what"),
    ],
)
def test_look_alikes_count_as_one_unless_comparison_is_strict(asked, read):
    found = [word(part) for part in read.split()]
    folded, strict = ocr.score_texts([asked], found), ocr.score_texts([asked], found, strict=True)
    assert folded.correct == folded.words > 0
    assert strict.correct < strict.words or not strict.words


@pytest.mark.parametrize(
    ("asked", "read"), [("Ill", "lll"), ("O0", "00"), ("café", "cafe"), ("营", "菅"), ("a-b", "ab")]
)
def test_folding_forgives_no_other_letter(asked, read):
    assert ocr.score_texts([asked], [word(read)]).correct == 0


def test_folding_is_stable():
    assert all(fold(fold(text)) == fold(text) for text in map(chr, range(0x20, 0xD800)))


def test_perfect_reading_scores_one():
    found = [word("Open"), word("24H"), word("fresh", y=0.65), word("bread", y=0.65)]
    score = ocr.score_layout(LAYOUT, found)
    assert (score.words, score.correct, score.accuracy, score.ned, score.placement) == (4, 4, 1.0, 1.0, 1.0)


def test_nothing_read_scores_zero():
    assert ocr.score_layout(LAYOUT, []) == ocr.Score(4, 0, 0.0, 0)
    assert ocr.score_texts([], []).accuracy == 0.0


def test_a_word_elsewhere_is_correct_but_not_placed():
    score = ocr.score_layout(LAYOUT, [word("OPEN", y=0.9)])
    assert (score.correct, score.placed) == (1, 0)


def test_each_word_read_serves_once():
    assert ocr.score_texts(["yes yes"], [word("yes")]).correct == 1


def test_of_equal_words_the_one_in_its_region_is_taken():
    page = Layout((TextRegion("GO", 0.0, 0.0, 1.0, 0.3), TextRegion("GO", 0.0, 0.7, 1.0, 0.3)))
    assert ocr.score_layout(page, [word("GO", y=0.8), word("GO", y=0.1)]).placed == 2


def test_ned_counts_half_read_words():
    assert ocr.score_texts(["bread"], [word("brexx")]).ned == pytest.approx(0.6)


def test_a_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ocr.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="no OCR engine is installed; install one: `pip install pytesseract`"):
        ocr.read_words(sketch.render(LAYOUT, 64, 64))
    with pytest.raises(InputError, match="the OCR engine rapidocr is not installed"):
        ocr.available_engine("rapidocr")
    with pytest.raises(InputError, match="OCR engine 'magic'; use auto"):
        ocr.available_engine("magic")


@pytest.fixture(params=["tesseract", "rapidocr"])
def engine(request):
    try:
        return ocr.available_engine(request.param)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("background", "size"), [("#ffffff", (512, 512)), ("#102040", (256, 320))])
def test_a_sketch_is_read_where_it_was_drawn(engine, background, size):
    found = ocr.read_words(sketch.render(LAYOUT, *size, background), engine)
    assert ocr.score_layout(LAYOUT, found) == ocr.Score(4, 4, 4.0, 4), [w.text for w in found]


def test_an_empty_page_has_no_words(engine):
    assert ocr.read_words(Image.new("RGB", (128, 96), "white"), engine) == []


def test_chinese_characters_are_read_in_their_box():
    pytest.importorskip("rapidocr")
    page = Layout((TextRegion("营业时间", 0.1, 0.1, 0.8, 0.3), TextRegion("OPEN 24h", 0.1, 0.6, 0.8, 0.3)))
    found = ocr.read_words(sketch.render(page, 384, 512), "rapidocr")
    assert ocr.score_layout(page, found) == ocr.Score(6, 6, 6.0, 6), [w.text for w in found]


def test_a_line_of_rapidocr_is_cut_into_words_by_their_lengths(monkeypatch):
    corners = np.array([[[100, 50], [300, 50], [300, 90], [100, 90]]], dtype=float)
    lines = SimpleNamespace(boxes=corners, txts=("FRESH tea!",), scores=(0.5,))
    monkeypatch.setattr(ocr, "available_engine", lambda name: "rapidocr")
    monkeypatch.setattr(ocr, "_rapidocr_reader", lambda: lambda image: lines)
    fresh, tea = ocr.read_words(Image.new("RGB", (400, 100)), "rapidocr")
    assert (fresh.text, fresh.x, fresh.y, fresh.width, fresh.height) == ("FRESH", 0.25, 0.5, 0.25, 0.4)
    assert (tea.text, tea.x, tea.width, tea.confidence) == ("tea!", 0.55, 0.2, 50.0)
    lines.boxes = lines.txts = lines.scores = None  # as it reports an empty page
    assert ocr.read_words(Image.new("RGB", (400, 100)), "rapidocr") == []


@pytest.mark.skipif(not shutil.which("tesseract"), reason="the tesseract program is not installed")
def test_a_language_tesseract_lacks_is_named():
    pytest.importorskip("pytesseract")
    with pytest.raises(InputError, match="tesseract has no language xx_none"):
        ocr.read_words(sketch.render(LAYOUT, 64, 64), "tesseract", "eng+xx_none")
