"""Pictures of logs and reports: what they show, and what they refuse."""

import json
from pathlib import Path

import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.training import curves, plots
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))


@pytest.fixture
def shown(monkeypatch):
    """The panels that would be drawn."""
    panels = []
    monkeypatch.setattr(curves, "write_panels", lambda given, *_, **_more: panels.extend(given))
    return panels


def test_each_stage_with_a_log_gives_its_figures_over_minutes(tmp_path, shown):
    (tmp_path / "planner").mkdir()
    lines = [{"step": i, "seconds": 60 * i, "full": 1 / i} for i in (1, 2)] + [{"plans2": 0.25, "grid": [3, 6]}]
    (tmp_path / "planner" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    curves.write_curves(tmp_path, tmp_path / "out.png")
    assert [(panel.title, panel.curves, panel.logarithmic) for panel in shown] == [
        ("planner", {"full": [(1.0, 1.0), (2.0, 0.5)]}, "y"),
        ("planner plans", {"plans2": [(2.0, 0.25)]}, ""),
    ]
    with pytest.raises(InputError, match="holds no log of any stage"):
        curves.write_curves(tmp_path / "other", tmp_path / "out.png")


def row(stage, size, amount, seconds, peer=None):
    return {"stage": stage, "size": size, "amount": amount, "fastest": seconds, "peer_fastest": peer}


def test_growth_holds_every_series_that_was_measured():
    rows = [row("planner decode", "1024x1024", 63, 0.1, 0.3), row("planner decode", "1024x1024", 255, 0.4, 1.2)]
    rows += [row("vae decode", f"{side}x64", side * 64, side / 100) for side in (256, 64, 128)]
    tokens, pixels = curves.growth_panels({"results": rows})
    assert tokens.curves == {
        "planner decode, ours": [(63, 0.1), (255, 0.4)],
        "planner decode, transformers": [(63, 0.3), (255, 1.2)],
    }
    assert tokens.ticks == {63: "64", 255: "256"} and tokens.logarithmic == "xy"
    assert pixels.curves == {"vae decode, ours": [(4096, 0.64), (8192, 1.28), (16384, 2.56)]}


@pytest.mark.parametrize("text", ["", "no JSON", json.dumps({"results": []})])
def test_a_file_without_growth_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="glm-image bench --growth"):
        curves.write_growth(tmp_path / "report.json", tmp_path / "out.png")


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_every_measured_report_has_its_picture_and_can_be_drawn(path, tmp_path):
    pytest.importorskip("matplotlib")
    curves.write_growth(path, tmp_path / "growth.png")
    with Image.open(ROOT / "docs" / "images" / f"{path.stem}.png") as kept, Image.open(tmp_path / "growth.png") as new:
        assert kept.size == new.size


def test_curves_are_drawn_in_their_frames_dashed_or_whole(tmp_path):
    pytest.importorskip("matplotlib")
    ours, peer = [(x, x) for x in range(1, 30)], [(x, 30 - x) for x in range(1, 30)]
    for dashed in (None, "peer"):
        panel = plots.Panel("a title", "steps", {"ours": ours, "the peer": peer}, dashed=dashed)
        plots.write_panels([panel, panel, panel], tmp_path / f"{dashed}.png")
    whole, partly = (Image.open(tmp_path / f"{dashed}.png").convert("RGB") for dashed in (None, "peer"))
    assert whole.size == partly.size == (1200, 720)
    blue, orange = ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E))
    count = [{colour: n for n, colour in image.getcolors(1 << 20)} for image in (whole, partly)]
    assert count[0][blue] == pytest.approx(count[1][blue], rel=0.05)
    assert count[1][orange] < 0.8 * count[0][orange]
