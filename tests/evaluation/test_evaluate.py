"""Benchmarks: reading their files, resuming, scoring, reporting; OCR is replaced where it is not the subject."""

import argparse
import json
from dataclasses import replace

import pytest
from comfyui_glm_image.cli import evaluate
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.evaluation import generate, ocr, prompts, read, report, scores
from PIL import Image


def write_regions(folder, regions, entries):
    folder.mkdir(exist_ok=True)
    (folder / f"{regions}.json").write_text(json.dumps({"data_list": entries}), encoding="utf-8")


def entry(index, prompt, sentences=()):
    return {"index": index, "prompt": prompt, "carrier_list": [], "sentence_list": list(sentences)}


@pytest.fixture
def cvtg(tmp_path):
    folder = tmp_path / "data"
    write_regions(folder, 2, [entry(0, "a shop sign 'Open Late' over \"Tea\""), entry(1, "no quotes", ["Go", "Home"])])
    write_regions(folder, 3, [entry(7, "'One' and 'two' and 'it's three'")])
    return folder


@pytest.fixture
def fake_ocr(monkeypatch):
    """Let OCR read what an image's file was saved with, and count its calls."""
    calls = []

    def read_words(image, engine, languages):
        calls.append(engine)
        return [ocr.Word(text, 0.1 * i, 0, 0.1, 0.1, 90.0) for i, text in enumerate(image.info["words"].split())]

    monkeypatch.setattr(ocr, "available_engine", lambda name: "tesseract")
    monkeypatch.setattr(ocr, "read_words", read_words)
    return calls


def painter(words):
    """A `make` that draws nothing but lets the fake OCR read `words[case.name]`; `batches` tells what it was given."""
    from PIL.PngImagePlugin import PngInfo

    def image(case):
        image = Image.new("RGB", (64, 32))
        info = PngInfo()
        info.add_text("words", words[case.name])
        save = image.save
        image.save = lambda path, format: save(path, format=format, pnginfo=info)
        return image

    def make(cases, index):
        make.batches.append((index, [case.name for case in cases]))
        return [image(case) for case in cases]

    make.batches = []
    return make


def test_regions_files_give_their_quoted_texts_and_fall_back_to_the_sentence_list(cvtg):
    cases = prompts.load_cases("cvtg2k", cvtg)
    assert [(c.name, c.group, c.texts) for c in cases] == [
        ("2_0", "2", ("Open Late", "Tea")),
        ("2_1", "2", ("Go", "Home")),
        ("3_7", "3", ("One", "two", "it's three")),
    ]


def test_limit_keeps_the_first_of_each_group(cvtg):
    assert [c.name for c in prompts.load_cases("cvtg2k", cvtg, limit=1)] == ["2_0", "3_7"]


def test_longtext_reads_both_languages(tmp_path):
    line = {"prompt_id": 4, "prompt": "a page", "text": ["one", "two"], "length": "short", "category": "x"}
    (tmp_path / "text_prompts.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "text_prompts_zh.jsonl").write_text(json.dumps({**line, "text": ["你好"]}, ensure_ascii=False) + "\n")
    cases = prompts.load_cases("longtext", tmp_path)
    assert [(c.name, c.texts) for c in cases] == [("en_4", ("one", "two")), ("zh_4", ("你好",))]


@pytest.mark.parametrize(
    ("benchmark", "content", "message"),
    [
        ("mmlu", None, "benchmark 'mmlu' is not known; use small, cvtg2k, longtext"),
        ("cvtg2k", None, "holds no 2.json"),
        ("cvtg2k", {"2.json": "{}"}, "data_list"),
        ("cvtg2k", {"2.json": '{"data_list": [{"prompt": "x"}]}'}, "has no index"),
        ("longtext", {"text_prompts.jsonl": "{"}, "line 1"),
        ("longtext", {}, "text_prompts.jsonl"),
    ],
)
def test_a_wrong_benchmark_is_named(tmp_path, benchmark, content, message):
    for name, text in (content or {}).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        prompts.load_cases(benchmark, tmp_path)


def test_a_benchmark_that_is_not_bundled_asks_for_its_folder():
    with pytest.raises(InputError, match="--data"):
        prompts.load_cases("cvtg2k")


def test_pictures_and_readings_are_not_made_twice(cvtg, tmp_path, fake_ocr):
    cases, out = prompts.load_cases("cvtg2k", cvtg), tmp_path / "out"
    make = painter({"2_0": "open late tea", "2_1": "go", "3_7": "one two it's three"})
    generate.generate_images(cases, out, make)
    first = read.read(cases, out)
    generate.generate_images(cases, out, lambda cases, index: pytest.fail("generated again"))
    assert read.read(cases, out) == first
    assert len(fake_ocr) == 3


def test_a_picture_drawn_again_is_read_again(cvtg, tmp_path, fake_ocr):
    cases, out = prompts.load_cases("cvtg2k", cvtg, limit=1)[:1], tmp_path / "out"
    generate.generate_images(cases, out, painter({"2_0": "nothing like it"}))
    assert read.read(cases, out)[0].correct == 0
    (out / "2_0.png").unlink()
    generate.generate_images(cases, out, painter({"2_0": "open late tea"}))
    assert read.read(cases, out)[0].correct == 3


def test_a_run_cut_off_within_a_line_goes_on(cvtg, tmp_path, fake_ocr):
    cases, out = prompts.load_cases("cvtg2k", cvtg), tmp_path / "out"
    generate.generate_images(cases, out, painter({"2_0": "open", "2_1": "go", "3_7": "one"}))
    read.read(cases, out)
    log = out / "readings.jsonl"
    log.write_text(log.read_text()[:-20])
    assert [r.correct for r in read.read(cases, out)] == [1, 1, 1]
    assert len(fake_ocr) == 4


def test_scores_are_pooled_over_words_and_lie_in_their_interval():
    readings = [
        read.Reading("a", "2", words=4, correct=4, similarity=4.0, read=("x",)),
        read.Reading("b", "2", words=1, correct=0, similarity=0.5, read=("y",)),
        read.Reading("c", "3", words=5, correct=1, similarity=2.5, read=("z",)),
    ]
    two, three, total = scores.score_groups(readings)
    assert (two.accuracy, two.ned) == (pytest.approx(0.8), pytest.approx(0.9))
    assert (three.accuracy, total.accuracy, total.group) == (pytest.approx(0.2), pytest.approx(0.5), "all")
    assert two.accuracy_low == 0.0 and two.accuracy_high == 1.0
    assert three.accuracy_low == three.accuracy_high == three.accuracy


def test_intervals_narrow_with_more_pictures():
    few = [read.Reading(str(i), "1", 1, i % 2, i % 2, ("x",)) for i in range(10)]
    one, many = scores.score_groups(few)[0], scores.score_groups(few * 20)[0]
    assert many.accuracy_high - many.accuracy_low < (one.accuracy_high - one.accuracy_low) / 2


def test_a_reader_that_reads_nothing_at_all_gives_no_score():
    blind = [read.Reading(str(i), "1", 1, 0, 0.0, ()) for i in range(6)]
    with pytest.raises(InputError, match="OCR read nothing on any of 6 images"):
        read.check_reader(blind)


def test_one_word_read_anywhere_makes_zero_an_honest_score():
    readings = [read.Reading(str(i), "1", 1, 0, 0.0, ("?",) if i == 3 else ()) for i in range(6)]
    read.check_reader(readings)


def test_the_report_names_scores_and_shows_pictures(cvtg, tmp_path, fake_ocr):
    cases, out = prompts.load_cases("cvtg2k", cvtg), tmp_path / "out"
    generate.generate_images(cases, out, painter({"2_0": "open late tea", "2_1": "no home", "3_7": "<b> two"}))
    text = report.write_report(out, "A & B", {"model": "<m>"}, cases, read.read(cases, out))
    assert "| 2 | 2 | 5 | 0.800 (" in text
    page = (out / "report.html").read_text()
    assert "A &amp; B" in page and "<m>" not in page
    assert json.loads((out / "report.json").read_text())["scores"][0]["words"] == 5
    assert Image.open(out / "sheet.png").width == 4 * (report.SHEET_WIDTH + 8)


def test_a_missing_picture_is_named(cvtg, tmp_path, fake_ocr):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="2_0.png is missing"):
        read.read(prompts.load_cases("cvtg2k", cvtg), out)


def test_batches_are_of_one_size_and_cut_at_the_same_places_however_often_a_run_stops(cvtg, tmp_path):
    sizes = [32, 32, 32, 64, 64]
    cases = [prompts.Case(str(i), "2", "x", ("x",), side, side) for i, side in enumerate(sizes)]
    make = painter(dict.fromkeys("01234", "x"))
    generate.generate_images(cases, tmp_path, make, batch=2)
    assert make.batches == [(0, ["0", "1"]), (2, ["2"]), (3, ["3", "4"])]
    (tmp_path / "4.png").unlink()
    generate.generate_images(cases, tmp_path, make, batch=2)
    assert make.batches[3:] == [(3, ["3", "4"])]
    assert (tmp_path / "4.png").exists()


# ---- the command, on a tiny checkpoint with random weights ----


def options(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def small(references, tmp_path):
    """(arguments of a run that takes a second, its output folder)"""
    data = tmp_path / "data"
    write_regions(data, 2, [{**entry(i, f"a sign 'Word{i}' and 'two'"), "height": 64, "width": 96} for i in range(2)])
    out = tmp_path / "out"
    given = ("--benchmark", "cvtg2k", "--data", data, "--model", references("plain")[0], "--out", out, "--steps", 2)
    return (*given, "--device", "cpu"), out


@pytest.fixture
def reads_word0(monkeypatch):
    monkeypatch.setattr(ocr, "available_engine", lambda name: "tesseract")
    monkeypatch.setattr(ocr, "read_words", lambda *_: [ocr.Word("word0", 0, 0, 1, 1, 90.0)])


def test_the_command_draws_reads_scores_and_resumes(small, reads_word0, capsys):
    words, out = small
    assert evaluate.run(options(*words)) == 0
    assert "| 2 | 2 | 4 | 0.250 (" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert sorted(before) == ["2_0.png", "2_1.png", "sheet.png"]
    (out / "2_1.png").unlink()
    assert evaluate.run(options(*words)) == 0
    assert {path.name: path.read_bytes() for path in out.glob("2_*.png")}.items() <= before.items()


def test_pictures_of_other_settings_are_not_mixed_in(small, reads_word0):
    words, out = small
    evaluate.run(options(*words))
    with pytest.raises(InputError, match="generated with cfg 1.5, now 2.0; use another --out"):
        evaluate.run(options(*words, "--cfg", "2"))


def test_pictures_of_other_forms_of_weights_are_not_mixed_in(small, reads_word0):
    words, out = small
    evaluate.run(options(*words, "--planner-weights", "w8"))
    evaluate.run(options(*words, "--planner-int8"))  # the same
    for now, other in (("--decoder-weights", "w8"), ("--planner-weights", "w4"), ("--planner-weights", "full")):
        with pytest.raises(InputError, match="_weights .*; use another --out"):
            evaluate.run(options(*words, *(("--planner-weights", "w8") if "decoder" in now else ()), now, other))


def test_pictures_from_elsewhere_are_scored_without_a_model(small, reads_word0):
    words, out = small
    with pytest.raises(InputError, match="2_0.png is missing"):
        evaluate.run(options(*words, "--read-only"))
    out.mkdir()
    for name in ("2_0", "2_1"):
        Image.new("RGB", (32, 32)).save(out / f"{name}.png")
    assert evaluate.run(options(*words, "--read-only", "--model", "no/such")) == 0


def test_each_ablation_leaves_its_part_out_and_nothing_else(references):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu")
    cases = [prompts.Case("a", "1", "a sign 'Open'", ("Open",), 64, 96)]
    drawn = {name: generate_batch(model, cases, name) for name in generate.ABLATIONS}
    assert len(set(drawn.values())) == len(generate.ABLATIONS)
    assert generate_batch(model, cases, "none") == drawn["none"]
    assert generate_batch(model, [replace(cases[0], texts=())], "none") == drawn["no-glyphs"]


def generate_batch(model, cases, ablation):
    return generate.generate_batch(model, cases, seed=3, steps=2, cfg=1.5, ablation=ablation)[0].tobytes()


def test_without_a_plan_pictures_of_different_plans_are_equal(references):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu")
    one, other = (prompts.Case("a", "1", text, ("x",), 64, 96) for text in ("a sign", "another"))
    assert generate_batch(model, [one], "none") != generate_batch(model, [other], "none")
    assert generate_batch(model, [one], "no-plan") == generate_batch(model, [other], "no-plan")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ablation", "half"), "ablation 'half' is not known; use none, no-glyphs, no-plan, shuffled-plan"),
        (("--batch", "0"), "--batch 0 is not accepted"),
        (("--limit", "-1"), "--limit -1 is not accepted"),
        (("--benchmark", "cvtg2k"), "name its folder with --data"),
        (("--data", "/no/such"), "/no/such is not a folder"),
        (("--ocr", "magic"), "OCR engine 'magic'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_drawn(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(options("--out", tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_size_the_model_cannot_draw_is_named(cvtg, tmp_path, fake_ocr):
    with pytest.raises(InputError, match="height 1000 is not a multiple of 32"):
        evaluate.run(options("--out", tmp_path / "out", "--benchmark", "cvtg2k", "--data", cvtg, "--height", 1000))


def test_a_file_that_is_no_picture_is_named(small, reads_word0):
    words, out = small
    out.mkdir()
    for name in ("2_0", "2_1"):
        (out / f"{name}.png").write_bytes(b"half a file")
    with pytest.raises(InputError, match="2_0.png is not an image; delete it"):
        evaluate.run(options(*words, "--read-only"))
