"""The picture of how cost grows: what it shows of a report, and what it refuses."""

import json
from pathlib import Path

import pytest
from comfyui_glm_image.tools import plot_bench
from PIL import Image, ImageColor

ROOT = Path(__file__).resolve().parent.parent
MEASURED = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))


def row(stage, size, amount, seconds, peer=None):
    return {"stage": stage, "size": size, "amount": amount, "fastest": seconds, "peer_fastest": peer}


@pytest.fixture
def report():
    rows = [row("planner decode", "1024x1024", 63, 0.1, 0.3), row("planner decode", "1024x1024", 255, 0.4, 1.2)]
    rows += [row("vae decode", f"{side}x64", side * 64, side / 100) for side in (64, 128, 256)]
    about = {"model": "a model", "device": "a card", "threads": 2, "dtype": "float32", "torch": "2", "date": "today"}
    return about | {"peers": {"transformers": "5"}, "results": rows}


def test_panels_hold_every_series_that_was_measured(report):
    tokens, pixels = plot_bench.panels(report)
    assert [(line.label, len(line.points)) for line in tokens.lines] == [
        ("planner decode, ours", 2),
        ("planner decode, transformers", 2),
    ]
    assert tokens.ticks == {63: "64", 255: "256"}
    assert [(line.label, line.points[0]) for line in pixels.lines] == [("VAE decode, ours", (4096, 0.64))]


def test_equal_factors_are_equal_distances_and_ticks_lie_on_the_axis():
    scale = plot_bench.Scale.over([0.01, 1.0], 0, 100)
    assert scale(0.1) - scale(0.01) == pytest.approx(scale(1.0) - scale(0.1))
    assert scale(0.01) > 0 and scale(1.0) < 100
    assert scale.ticks() == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


@pytest.mark.parametrize(
    "seconds, text", [(2.0, "2 s"), (0.5, "500 ms"), (0.001, "1 ms"), (2e-5, "20 µs"), (50, "50 s")]
)
def test_times_have_units(seconds, text):
    assert plot_bench.duration(seconds) == text


def test_the_picture_shows_points_where_the_scales_put_them(report):
    image = plot_bench.draw(report)
    last = plot_bench.Scale.over([63, 255], plot_bench.LEFT, plot_bench.LEFT + plot_bench.PANEL_WIDTH)(255)
    height = plot_bench.Scale.over([0.1, 1.2], plot_bench.TOP + plot_bench.PANEL_HEIGHT, plot_bench.TOP)(0.4)
    assert image.getpixel((round(last), round(height))) == ImageColor.getrgb(plot_bench.COLOURS["planner decode"])


@pytest.mark.parametrize("text", ["", "no JSON", json.dumps({"results": []})])
def test_a_file_without_growth_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(SystemExit, match="glm-image bench --growth"):
        plot_bench.main(str(tmp_path / "report.json"), str(tmp_path / "out.png"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_every_measured_report_has_its_picture(path):
    with Image.open(ROOT / "docs" / "images" / f"{path.stem}.png") as picture:
        assert picture.size == (plot_bench.WIDTH, plot_bench.HEIGHT)
    plot_bench.draw(plot_bench.read(path))
