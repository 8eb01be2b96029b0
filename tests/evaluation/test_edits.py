"""The benchmark of edits: its files, its judgement of images that are known, and the command on tiny checkpoints."""

import argparse
import json

import numpy as np
import pytest
from comfyui_glm_image.cli import evaluate
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.evaluation import edits, ocr
from comfyui_glm_image.pipeline.evaluation.ocr import Word
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from PIL import Image

BUNDLED = SMALL / "benchmark" / "edit"
SIZE = (96, 64)


def options(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def case(kind="background", texts=(), references=1, before="red", asked="blue"):
    """Four of six tokens change their colour; the lower left ones stay grey."""
    changed = np.array([[True, True, True], [False, False, True]])
    images = []
    for colour in (before, asked):
        image = Image.new("RGB", SIZE, colour)
        image.paste("grey", (0, 32, 64, 64))
        images.append(image)
    more = [Image.new("RGB", SIZE, asked)] * (references - 1)
    return edits.EditCase(f"{kind}_0", kind, "a prompt", texts, (images[0], *more), images[1], changed)


def judge(case, image):
    return edits.score_edit(case, image, "no engine is needed")


def test_the_picture_asked_for_is_changed_and_kept_and_the_one_before_is_not_changed():
    assert judge(case(), case().asked) == edits.EditResult("background_0", "background", True, edits.BEST)
    before = judge(case(), case().references[0])
    assert not before.changed and before.kept


def test_a_change_counts_when_most_of_the_way_is_gone():
    for share, changed in ((0.6, True), (0.4, False)):
        asked, before = case().asked, case().references[0]
        assert judge(case(), Image.blend(before, asked, share)).changed is changed


def test_damage_outside_the_change_is_measured_in_decibels():
    image = np.array(case().asked)
    image[32:, :64] += 20  # grey of 128 becomes 148
    result = judge(case(), Image.fromarray(image))
    assert result.changed and not result.kept
    assert result.psnr == pytest.approx(10 * np.log10(255**2 / 20**2), abs=1e-3)


def test_a_new_word_must_be_read_whatever_the_pixels_say(monkeypatch):
    monkeypatch.setattr(ocr, "read_words", lambda *_: [Word("Shop", 0, 0, 1, 1, 90.0)])
    for texts, changed in ((("SHOP",), True), (("SHOE",), False), (("SHOP", "TEA"), False)):
        result = judge(case("word", texts), case().asked)
        assert result.changed is changed and result.read == ("Shop",)


def test_a_picture_of_another_size_is_named():
    with pytest.raises(InputError, match="background_0 is 32x32, this edit asks for 96x64"):
        judge(case(), Image.new("RGB", (32, 32)))


def test_cases_are_read_as_they_were_written(tmp_path):
    written = [case(), case("combine", references=2, asked="green"), case("word", ("A", "B"))]
    edits.write_edits(tmp_path, written)
    for given, read in zip(written, edits.load_edits(tmp_path), strict=True):
        assert (given.name, given.kind, given.prompt, given.texts) == (read.name, read.kind, read.prompt, read.texts)
        assert (given.changed == read.changed).all() and given.asked.tobytes() == read.asked.tobytes()
        pairs = zip(given.references, read.references, strict=True)
        assert all(one.tobytes() == other.tobytes() for one, other in pairs)
    assert [read.name for read in edits.load_edits(tmp_path, limit=1)] == ["background_0", "combine_0", "word_0"]
    with pytest.raises(InputError, match="holds no edits.json"):
        edits.load_edits(tmp_path / "other")


def test_the_bundled_edits_are_200_of_five_kinds_and_their_answers_are_right_without_a_reader():
    cases = edits.load_edits(BUNDLED)
    kinds = [each.kind for each in cases]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("word", "ink", "background", "object", "combine"), 40
    )
    for each in cases:
        if not each.texts:
            assert judge(each, each.asked).changed and not judge(each, each.references[0]).changed


def test_the_sheet_shows_the_first_of_every_kind():
    cases = [case(kind, asked=colour) for kind in ("ink", "object") for colour in ["blue"] * 9]
    sheet = edits.edit_sheet(cases, [each.asked for each in cases])
    assert sheet.width == 4 * (edits.SHEET_WIDTH + 8)
    assert sheet.height == 16 * (SIZE[1] * edits.SHEET_WIDTH // SIZE[0] + 20)
    assert sheet.getpixel((4 + 90, 2)) == (255, 0, 0) and sheet.getpixel((4 + 2 * 200 + 90, 2)) == (0, 0, 255)


def test_the_command_edits_scores_and_resumes(references, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ocr, "available_engine", lambda name: "tesseract")
    monkeypatch.setattr(ocr, "read_words", lambda *_: [Word("a", 0, 0, 1, 1, 90.0)])
    edits.write_edits(tmp_path / "data", [case(), case("word", ("A",)), case("combine", references=2)])
    out = tmp_path / "out"
    words = ("--benchmark", "small-edit", "--data", tmp_path / "data", "--out", out, "--steps", 2, "--device", "cpu")
    words = (*words, "--model", references("plain")[0])
    assert evaluate.run(options(*words)) == 0
    assert "| word | 1 | 1.000 (" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert [result["name"] for result in report["edits"]] == ["background_0", "word_0", "combine_0"]
    drawn = (out / "combine_0.png").read_bytes()
    (out / "combine_0.png").unlink()
    assert evaluate.run(options(*words)) == 0 and (out / "combine_0.png").read_bytes() == drawn
    with pytest.raises(InputError, match="has no ablations"):
        evaluate.run(options(*words, "--ablation", "no-plan"))
    (out / "word_0.png").unlink()
    with pytest.raises(InputError, match="word_0.png is missing"):
        evaluate.run(options(*words, "--read-only"))
