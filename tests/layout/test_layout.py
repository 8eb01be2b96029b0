"""The layout model: its JSON, its other forms, what it refuses, and the prompt it makes."""

import json
import time
from pathlib import Path

import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.layout.check import check, inside_page, overlap
from comfyui_glm_image.pipeline.layout.parse import from_lines, read_layout
from comfyui_glm_image.pipeline.layout.prompt import to_prompt
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.layout.text_fit import LINE_HEIGHT, advance, fitting_size, vertical_size, wrap
from comfyui_glm_image.pipeline.text import quoted_texts

SHARED = json.loads((Path(__file__).parents[1] / "data" / "layout_fit.json").read_text())


def region(text="OPEN", x=0.1, y=0.1, width=0.5, height=0.2, **more):
    return TextRegion(text, x, y, width, height, **more)


def layout(*regions):
    return Layout(regions or (region(),))


def test_json_round_trip_keeps_hostile_text_whole():
    hostile = region('</script><img onerror=x> "quotes" \\ \n 🎉 营业中', style="'; drop table", role="title")
    assert Layout.from_json(layout(hostile, region("b")).to_json()) == layout(hostile, region("b"))


def test_fitting_sizes_line_breaks_and_reading_order_equal_those_of_the_editor():
    for row in SHARED["fits"]:
        assert fitting_size(row["text"], row["width"], row["height"]) == pytest.approx(row["horizontal"], abs=1e-5)
        assert vertical_size(row["text"], row["width"], row["height"]) == pytest.approx(row["vertical"], abs=1e-5)
        assert wrap(row["text"], 8, advance) == row["lines"]
    regions = tuple(TextRegion("a", *box) for box in SHARED["order"]["boxes"])
    assert Layout(regions).reading_order() == SHARED["order"]["order"]


def test_fitting_size_is_the_largest_that_fits():
    size = fitting_size("three short words", 200, 90)
    for wanted, fits in ((size, True), (size * 1.03, False)):
        lines = wrap("three short words", 200 / wanted, advance)
        assert (lines is not None and len(lines) * LINE_HEIGHT * wanted <= 90) == fits


def test_reading_order_is_rows_then_columns():
    page = layout(
        region("d", 0.6, 0.7), region("b", 0.55, 0.12, 0.3), region("a", 0.05, 0.1, 0.3), region("c", 0.1, 0.5)
    )
    assert page.glyph_texts() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (" " * 5_000_000 + "{", "at most 4000000"),
        ('{"a": 1}', 'not a "glm-image-layout" object'),
        ('{"format": "glm-image-layout", "version": 9, "regions": []}', "version 9, this release reads 1"),
        ('{"format": "glm-image-layout", "version": 1, "regions": 3}', "regions are int, expected a list"),
        ('{"format": "glm-image-layout", "version": 1, "regions": ["a"]}', "region 1 is str"),
        ('{"format": "glm-image-layout", "version": 1, "regions": [{"text": "a"}]}', r"region 1 lacks \['height'"),
    ],
)
def test_broken_json_is_an_error_that_names_the_fault(value, message):
    with pytest.raises(InputError, match=message):
        Layout.from_json(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x": 10**400}, "region 1: x is 1000"),
        ({"x": "left"}, "region 1: x is 'left'"),
        ({"x": True}, "region 1: x is True"),
        ({"y": float("nan")}, "region 1: y is nan"),
        ({"width": 1e999}, "region 1: width is inf"),
        ({"text": 5}, "region 1: text is int"),
        ({"z": 1}, r"region 1 has unknown fields \['z'\]"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields, message):
    data = json.loads(layout().to_json())
    data["regions"][0] |= fields
    with pytest.raises(InputError, match=message):
        Layout.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (Layout(()), "no regions"),
        (Layout(tuple(region() for _ in range(500))), "500 regions; at most 100"),
        (layout(region(" \n ")), r'region 1 \(""\): empty text'),
        (layout(region("a"), region("b", x=0.8)), r'region 2 \("b"\): outside the page \(80%..130% across'),
        (layout(region(y=-0.5)), "outside the page"),
        (layout(region(width=0.0)), "give it an area"),
        (layout(region("a"), region("b", x=0.12)), r'region 2 \("b"\): 96% of it or of region 1 \("a"\) is shared'),
        (layout(region("word " * 100, width=0.1)), "more text than its box of 102x205 px holds at 12 px"),
        (layout(region("x" * 1_000_000)), "1000000 characters; at most 1000"),
        (layout(region("a\x00b")), r"control character U\+0000"),
        (layout(region("a\u202eb")), r"control character U\+202E"),
        (layout(region("a\ud800")), "unpaired surrogate"),
        (layout(region(role="hero")), "role 'hero'; use title"),
        (layout(region(align="top")), "align 'top'; use left"),
        (layout(region(direction="up")), "direction 'up'"),
        (layout(region(color="red")), "colour 'red'; use #rrggbb"),
        (layout(region("שלום", direction="vertical")), "right-to-left letters cannot stand in vertical"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_region_and_reason(page, message):
    with pytest.raises(InputError, match=message):
        check(page, 1024, 1024)


def test_every_bad_region_is_listed_at_once():
    with pytest.raises(InputError, match=r"region 1 .*region 3 .*region 4 ") as error:
        check(layout(region(""), region("b", y=0.7), region("c", x=2.0), region("d", width=-1.0)), 1024, 1024)
    assert "region 2" not in str(error.value)


def test_overlap_limit_is_a_share_of_the_smaller_box():
    page = layout(region("a", 0.1, 0.1, 0.8, 0.4), region("b", 0.1, 0.4, 0.2, 0.2))
    assert overlap(*page.regions) == pytest.approx(0.5)
    check(page, 1024, 1024, max_overlap=0.51)
    with pytest.raises(InputError, match="at most 49%"):
        check(page, 1024, 1024, max_overlap=0.49)


def test_rounding_beyond_the_edge_is_clipped_away():
    page = layout(region("a", -0.0005, 0.0, 1.0009, 0.2))
    check(page, 1024, 1024)
    (clipped,) = inside_page(page).regions
    assert (clipped.x, clipped.right) == (0.0, 1.0)


def test_core_elements_are_read_ymin_first_and_objects_left_out():
    value = [
        {"type": "text", "bbox": [100, 200, 300, 700], "text": "HI", "desc": "red"},
        {"type": "obj", "bbox": [0, 0, 500, 500], "desc": "a cat"},
    ]
    (only,) = read_layout(value, 512, 512).regions
    assert (only.x, only.y, only.width, only.height) == pytest.approx((0.2, 0.1, 0.5, 0.2))
    assert (only.text, only.style) == ("HI", "red")
    assert read_layout(json.dumps(value), 512, 512).regions == (only,)


def test_pixel_boxes_are_read_with_their_metadata():
    box = {"x": 64, "y": 32, "width": 128, "height": 64, "metadata": {"type": "text", "text": "HI", "desc": ""}}
    for value in ([box], [[box]], box):
        (only,) = read_layout(value, 256, 512).regions
        assert (only.x, only.y, only.width, only.height) == pytest.approx((0.125, 0.125, 0.25, 0.25))


def test_sentence_lists_become_bands_in_their_order():
    value = {"prompt": "a street", "carrier_list": ["sign", "window"], "sentence_list": ["OPEN", "SALE 50%"]}
    page = read_layout(value, 512, 512)
    check(page, 512, 512)
    assert page.glyph_texts() == ["OPEN", "SALE 50%"]
    assert [(r.role, r.style) for r in page.regions] == [("sign", ""), ("text", "on the window")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "not int"),
        ([1], "not list"),
        ([{"bbox": [1, 2, 3], "text": "a"}], "element 1: bbox"),
        ([{"bbox": [500, 0, 100, 100], "text": "a"}], "max above min"),
        ([{"bbox": [0, 0, 100, 100]}], "element 1 has no text; connect the `elements` output"),
        ([{"x": 1, "y": 1, "width": "2", "height": 1, "text": "a"}], "element 1: box"),
        ([{"x": 1, "y": 1, "width": 2, "height": 1}], "element 1 has no text"),
        ({"sentence_list": "OPEN"}, "list of strings"),
    ],
)
def test_unreadable_forms_are_refused_with_the_reason(value, message):
    with pytest.raises(InputError, match=message):
        read_layout(value, 512, 512)


def test_plain_lines_give_places():
    page = from_lines(
        "title (bold red): OPEN 24h @ top 25%\nsign: 营业 @ bottom 10% left 40%\nlabel: A @ 10% 20% 30% 5%"
    )
    first, second, third = page.regions
    assert (first.text, first.role, first.style) == ("OPEN 24h", "title", "bold red")
    assert (first.x, first.y, first.width, first.height) == pytest.approx((0.05, 0, 0.9, 0.25))
    assert (second.x, second.y, second.width, second.height) == pytest.approx((0.05, 0.9, 0.4, 0.1))
    assert (third.x, third.y, third.width, third.height) == pytest.approx((0.1, 0.2, 0.3, 0.05))


def test_lines_with_heights_only_stack_as_bands_and_the_rest_share_what_is_left():
    page = from_lines("title: A @ 25%\nbody: B @ 40%\ncaption: C")
    assert [r.y + r.height / 2 for r in page.regions] == pytest.approx([0.125, 0.45, 0.825])
    check(page, 1024, 1024)


def test_colons_and_at_signs_inside_the_text_stay():
    texts = ["Opening hours: 9-17", "me@home.org", 'a "b" @ c', "two\nlines"]
    page = from_lines('Opening hours: 9-17\nme@home.org\n"a "b" @ c" @ middle\ntwo\\nlines')
    assert [r.text for r in page.regions] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: A @ noon", "line 1: 'noon' is not a place"),
        ("A @ top 300%", "not a place"),
        ("A @ top 10% 20%", "not a place"),
        ("hero (bold): A @ top", "line 1: role 'hero'"),
        ("A @ 70%\nB @ 70%", "ask for 140% of the page"),
    ],
)
def test_bad_lines_are_named(text, message):
    with pytest.raises(InputError, match=message):
        from_lines(text)


def test_prompt_names_role_place_and_style_in_reading_order():
    page = layout(
        region("Price 5", 0.6, 0.8, 0.35, 0.1, role="price", style="bold red"),
        region("MENU", 0.1, 0.02, 0.8, 0.2, role="title"),
    )
    assert to_prompt(page, "A menu", sizes=False) == (
        'A menu. It shows 2 texts: the title "MENU" at the top; the price "Price 5" at the bottom right in bold red.'
    )
    assert to_prompt(page, "菜单", "chinese", sizes=False) == (
        "菜单。画面中共有2处文字：标题“MENU”位于顶部；价格“Price 5”位于右下方，bold red。"
    )
    assert "10% to 90% across, 2% to 22% down" in to_prompt(page)


@pytest.mark.parametrize("language", ["english", "chinese"])
@pytest.mark.parametrize(
    "text", ['He said "hi"', "Don't stop", "“smart”", "「引」 and “smart”", 'a "b" “c” 「d」', "O'Neil's"]
)
def test_quotes_inside_a_text_survive_the_prompt(text, language):
    page = layout(region(text), region("second", y=0.6))
    assert quoted_texts(to_prompt(page, "A sign", language), "prompt_order") == [text, "second"]
    assert page.glyph_texts() == [text, "second"]


def test_a_text_with_every_kind_of_quote_is_refused():
    with pytest.raises(InputError, match="region 1: the text holds every kind of quotation mark"):
        to_prompt(layout(region('"“”「」『』«»')))


def test_line_breaks_become_spaces_for_prompt_and_glyphs():
    page = layout(region("two\nlines"))
    assert page.glyph_texts() == ["two lines"]
    assert '"two lines"' in to_prompt(page)


def test_a_hundred_full_regions_are_checked_quickly():
    cells = [(0.1 * (i % 10), 0.1 * (i // 10)) for i in range(100)]
    page = Layout(tuple(region("word " * 20, x, y, 0.095, 0.095) for x, y in cells))
    start = time.perf_counter()
    check(page, 2048, 2048)
    assert time.perf_counter() - start < 5
