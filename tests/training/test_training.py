"""Training data, the designed latent, and stages that stop and go on. Nothing here trains for more than a few steps."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.text import quoted_texts
from comfyui_glm_image.training import (
    __main__ as command,
)
from comfyui_glm_image.training import (
    autoencoder,
    common,
    data,
    decoder,
    drawing,
    edits,
    export,
    latent,
    models,
    panel_scenes,
    planner,
    vision,
)
from comfyui_glm_image.training.common import Recipe, Stage

SMALL = drawing.FONT.parent.parent.parent / "checkpoints" / "small"
CPU = torch.device("cpu")
RECIPE = Recipe(minutes=1.0, batch=2, lr=1e-3, device=CPU, sizes="1x4,2x4", regions=0.5)


def scenes(count=300, h=4, w=6, seed=0, several=0.5):
    return data.draw_scenes(random.Random(seed), h, w, count, several)


# ---- scenes ----


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    def prompts(seed):
        return [scene.prompt for scene in scenes(20, seed=seed)]

    assert prompts(3) == prompts(3) != prompts(4)


def test_a_prompt_quotes_exactly_what_its_picture_shows():
    for scene in scenes():
        quoted = [text.upper() for text in quoted_texts(scene.prompt, "prompt_order")]
        assert quoted == scene.texts
        rows = ["".join(data.ALPHABET[c - 1] for c in row if c) for row in scene.chars]
        assert [row for row in rows if row] == scene.texts


def test_codes_tell_the_length_of_every_word_and_nothing_of_its_letters():
    for scene in scenes():
        assert planner.is_plan_of(scene.codes, scene.texts)
        assert not planner.is_plan_of(scene.codes, [*scene.texts, "ANOTHER"])
    one, other = (data.draw_scene(random.Random(1), 1, 4, [word]) for word in ("OPEN", "SHOP"))
    assert (one.codes == other.codes).all() and not (one.chars == other.chars).all()


def test_words_of_the_benchmark_are_never_drawn_in_training():
    drawn = {word for scene in scenes(2000, h=1, w=4, several=0) for word in scene.texts}
    assert len(drawn) > 1000
    assert not drawn & set(data.HELD_OUT)
    assert not any(data.held_out(word) for word in drawn)
    assert {word for scene in data.held_scenes(40, 3, 6) for word in scene.texts} <= set(data.HELD_OUT)


def test_sizes_are_read_with_their_weights():
    assert data.parse_sizes("2x4:3,3x6") == [(2, 4, 3), (3, 6, 1)]


# ---- scenes of 256 px ----


SCENES = {**panel_scenes.KINDS, "card": panel_scenes.card}


@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_quotes_texts_of_up_to_three_words_that_differ_in_length(kind):
    rng, counts = random.Random(8), set()
    for _ in range(60):
        scene = SCENES[kind](rng, data.random_word)
        sizes = {"book": panel_scenes.COVER, "card": panel_scenes.CARD}
        assert scene.picture.size == sizes.get(kind, panel_scenes.SIDES)
        assert quoted_texts(scene.prompt, "prompt_order") == scene.texts
        words = [word for text in scene.texts for word in text.split()]
        assert words == [line.word for line in scene.picture.lines]
        assert len({len(word) for word in words}) == len(words)
        assert not any(data.held_out(word) for word in words)
        assert planner.is_plan_of(scene.codes, words)
        counts.update(text.count(" ") + 1 for text in scene.texts)
    assert counts == {"card": {2, 3}, "sign": {1, 2}, "shop": {1}, "book": {1, 2, 3}, "menu": {1}}[kind]


@pytest.mark.parametrize("kind", SCENES)
def test_everything_in_a_scene_stands_on_the_colour_that_its_token_names(kind):
    rng = random.Random(9)
    for _ in range(60):
        picture = SCENES[kind](rng, data.held_word).picture
        pixels = drawing.render(picture.codes[None], picture.chars[None])[0]
        for panel in picture.panels[-1:]:  # nothing but words and shapes covers the last one
            corner = pixels[data.TOKEN * panel.row, data.TOKEN * panel.left]
            assert tuple(corner) == data.COLOURS[panel.colour]
        for line in picture.lines:
            under = tuple(pixels[data.TOKEN * line.row, data.TOKEN * line.left])
            assert under == data.COLOURS[line.plate] and line.ink in data.INKS[line.plate]
            left = pixels[data.TOKEN * line.row, data.TOKEN * line.left - 1] if line.left else under
            assert tuple(left) in data.COLOURS.values()


def test_the_planner_tells_the_words_of_a_quoted_text_apart():
    ids = planner.prompt_encoder().tokenizer.encode('a red book with the title "OLD FOX" in white').ids
    marks = planner._prompt_places(ids)
    text = [mark for mark in marks if mark != planner.UNMARKED]
    assert text[:8] == [0, 1, 2, data.MAX_WORD + 2] * 2
    assert set(text[8:]) == {data.MAX_WORD + 2}  # what follows the text knows its last word's length


# ---- edits ----


@pytest.mark.parametrize("kind", edits.KINDS)
def test_an_edit_changes_what_it_names_and_keeps_the_rest(kind):
    rng = random.Random(3)
    for h, w in ((2, 4), (3, 6), (4, 6)) * 20:
        edit = edits.draw_edit(rng, h, w, kind)
        before, after = edit.references[0], edit.target
        rest = ~edit.changed
        assert edit.changed.any() and not rest.all()
        if kind == "combine":
            assert after.paper == edit.references[1].paper != before.paper
        elif kind == "background":
            assert (after.chars == before.chars).all() and after.paper != before.paper and after.paper in edit.prompt
        else:
            assert (after.codes == before.codes)[rest].all()
        if kind == "word":
            assert list(edit.texts) == quoted_texts(edit.prompt, "prompt_order")
            assert edit.texts[0] in {line.word for line in after.lines} - {line.word for line in before.lines}
        else:
            assert edit.texts == () and not quoted_texts(edit.prompt, "prompt_order")


def test_lines_of_an_edited_picture_can_be_told_apart_by_their_lengths():
    rng = random.Random(4)
    for kind in edits.KINDS:
        for _ in range(40):
            lengths = [len(line.word) for line in edits.draw_edit(rng, 3, 6, kind).target.lines]
            assert len(set(lengths)) == len(lengths)


def test_edits_of_training_never_show_words_of_the_benchmark():
    drawn = edits.draw_edits(random.Random(5), 3, 6, 300)
    words = {line.word for scene in drawn for picture in (scene.picture, *scene.references) for line in picture.lines}
    assert len(words) > 200 and not any(data.held_out(word) for word in words)


def test_the_planner_reads_the_tokens_of_every_row_s_own_references():
    drawn = edits.draw_edits(random.Random(6), 2, 4, 6)
    ids, positions, mask, *_ = planner.to_sequence(drawn, "edit")
    assert models.PLANNER_CONFIG.image_token_id not in ids
    for row, scene in enumerate(drawn):
        shown = torch.cat([torch.from_numpy(picture.codes.reshape(-1)) for picture in scene.references])
        codes = ids[row][mask[row] & (ids[row] < data.CODEBOOK)]
        assert torch.equal(codes[: len(shown)], shown)


def test_the_decoder_sees_references_except_in_rows_that_hide_them():
    torch.manual_seed(0)
    model = decoder.DecoderModel()
    with torch.no_grad():
        model.dit.proj_out.weight.normal_()
    scenes = edits.draw_edits(random.Random(7), 2, 4, 2, edits.SINGLE)
    z, prior, _ = decoder.to_batch(scenes)
    embeds, real = decoder.glyph_embeds(model.glyph, [[""], [""]])

    def velocity(references):
        drop, time = torch.zeros_like(prior, dtype=torch.bool), torch.full((2,), 500.0)
        return models.run_dit(model.dit, z, embeds, real, prior, drop, time, (64, 128), 2, references)[0]

    hidden = torch.tensor([False, True])
    alone, shown = velocity(None), velocity(decoder.write_references(model.dit, scenes, hidden, 0.0))
    assert not torch.allclose(shown[0], alone[0], atol=1e-3)
    torch.testing.assert_close(shown[1], alone[1], rtol=1e-4, atol=1e-5)
    assert decoder.write_references(model.dit, scenes_without_references(), hidden, 0.0) is None


def scenes_without_references():
    return scenes(2, h=2, w=4)


# ---- the designed latent ----


def test_the_latent_of_a_letter_is_the_same_in_all_colours():
    letters = np.array([[[1, 2, 3, 4]]])
    masks = []
    for paper, ink in (("red", "white"), ("white", "blue")):
        codes = np.array([[[data.text_code(paper, ink, 4, 0), data.text_code(paper, ink, 4, 1)]]])
        masks.append(latent.latents(codes, letters)[:, 6:])
    assert (masks[0] == masks[1]).all() and np.abs(masks[0]).max() > 1


def test_pictures_can_be_told_from_their_latents():
    drawn = scenes(24)
    grids = np.stack([s.codes for s in drawn]), np.stack([s.chars for s in drawn])
    z = latent.latents(*grids)
    assert z.shape == (24, latent.CHANNELS, 16, 24) and z.std() == pytest.approx(1, abs=0.6)
    error = latent.pictures(z).astype(float) - drawing.render(*grids)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 25
    assert decoder.read_words(torch.from_numpy(z), drawn) == 1.0


def test_wrong_letters_are_not_read_as_right_ones():
    drawn = scenes(24)
    z = latent.latents(np.stack([s.codes for s in drawn]), np.stack([np.where(s.chars, 1, 0) for s in drawn]))
    assert decoder.read_words(torch.from_numpy(z), drawn) < 0.1


# ---- stages ----


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.outer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(self.inner(x)).square().mean()


def line_stage(folder, seed=0):
    torch.manual_seed(seed)
    model = Line()
    return Stage(folder, model, common.optimisers(model, "inner", RECIPE), minutes=1e6)


def take(stage, steps):
    for _ in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(stage.step))
        stage.update(stage.model(x))


def test_a_stage_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = line_stage(tmp_path / "whole")
    take(whole, 12)
    first = line_stage(tmp_path / "parts")
    take(first, 5)
    first.save()
    second = line_stage(tmp_path / "parts", seed=9)
    assert (second.step, second.seconds) == (5, pytest.approx(first.seconds))
    take(second, 7)
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(second.ema.parameters(), whole.ema.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_minutes_count_over_restarts(tmp_path):
    stage = line_stage(tmp_path)
    stage.seconds = 30.0
    stage.save()
    again = Stage(tmp_path, Line(), common.optimisers(Line(), "inner", RECIPE), minutes=0.5)
    assert again.progress >= 1 and not again.running()


def test_minutes_that_other_work_had_the_processor_do_not_count(tmp_path, monkeypatch):
    wall, busy = [100.0], [5.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: wall[0])
    monkeypatch.setattr(common.time, "process_time", lambda: busy[0])
    stage = Stage(tmp_path, Line(), [], minutes=1.0)
    wall[0], busy[0] = 1000.0, 15.0
    assert stage.elapsed == 10.0
    stage.save()
    busy[0] += 300.0  # many threads at once
    wall[0] += 30.0
    assert stage.elapsed == 40.0 and stage.progress == pytest.approx(2 / 3)
    stage.waits = True
    wall[0] += 30.0
    assert stage.elapsed == 70.0


def test_a_state_that_was_being_written_is_not_trusted(tmp_path, monkeypatch):
    assert common.read_meta(tmp_path) == {}
    common.save_state({"t": torch.ones(1)}, tmp_path, {"step": 1, "seconds": 0})

    def stop(_tensors, path, **_more):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        common.save_state({"t": torch.zeros(1)}, tmp_path, {"step": 2, "seconds": 0})
    assert common.read_state(tmp_path)["t"] == 1 and common.read_meta(tmp_path)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [common.STATE]


def test_muon_updates_are_orthogonal():
    m = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(common.orthogonal(m))
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(common.orthogonal(m.mT), common.orthogonal(m).mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "train, parts",
    [
        (autoencoder.train, ["encoder.conv_in", "decoder.conv_out"]),
        (vision.train, ["model.visual.blocks.0", "model.vqmodel.quant_conv"]),
        (planner.train, ["planner.lm_head", "planner.model.language_model.layers.0", "place", "column"]),
        (decoder.train, ["dit.proj_out", "dit.transformer_blocks.0", "glyph.shared", "aux"]),
    ],
    ids=["vae", "vision", "planner", "decoder"],
)
def test_a_few_steps_of_each_stage_train_its_parts_and_leave_a_state(train, parts, tmp_path, monkeypatch):
    steps = itertools.count()
    monkeypatch.setattr(Stage, "running", lambda stage: next(steps) < 3 or stage.save())
    monkeypatch.setattr(decoder, "warm_up_glyphs", lambda glyph, rng: 0.0)
    monkeypatch.setattr(common, "LOG_EVERY", 3)
    starts = []
    init = Stage.__init__

    def remember(stage, folder, model, *rest, **more):
        starts.append({name: p.detach().clone() for name, p in model.named_parameters()})
        init(stage, folder, model, *rest, **more)

    monkeypatch.setattr(Stage, "__init__", remember)
    train(tmp_path, RECIPE)
    state = common.read_state(tmp_path)
    for part in parts:
        moved = [n for n, p in starts[0].items() if n.startswith(part) and not torch.equal(p, state[f"model.{n}"])]
        assert moved, part
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["step"] == 3 and np.isfinite(line["loss"])


def test_glyph_warm_up_soon_tells_letters_apart():
    torch.manual_seed(0)
    rng = random.Random(0)
    glyph = models.glyph()
    assert decoder.warm_up_glyphs(glyph, rng, steps=40) < 0.7 * decoder.warm_up_glyphs(models.glyph(), rng, steps=1)


def test_planner_learns_to_count_from_marks_on_letters_quotes_rows_and_columns():
    scene = data.draw_scene(random.Random(0), 2, 4, ["OPEN", "UP"])
    *_, places, targets, full = planner.to_sequence([scene], "plain")
    prompt = planner.prompt_batch([scene], preview=False).ids.shape[1]
    marks = [int(mark) for mark in places[0, 0, : prompt - 1]]
    first, second = (marks.index(0), len(marks) - 1 - marks[::-1].index(0))
    assert marks[first : first + 5] == [0, 1, 2, 3, data.MAX_WORD + 3]
    assert set(marks[first + 5 : second - 1]) == {data.MAX_WORD + 3}  # what is said of a word is marked with its length
    assert marks[second - 1 : second + 2] == [planner.UNMARKED, 0, 1] and set(marks[second + 2 :]) == {
        data.MAX_WORD + 1
    }
    assert (places[0, 0, prompt - 1 :] - planner.ROWS).tolist() == [0] * 4 + [1] * 4
    assert places[1, 0, prompt - 1 :].tolist() == [0, 1, 2, 3] * 2
    assert targets.shape[1] == full == 8


def test_a_skipped_preview_leaves_the_full_grid_where_it_stands_after_one():
    drawn = scenes(3, h=2, w=4)
    whole, short = (planner.to_sequence(drawn, mode) for mode in ("preview", "skipped"))
    for long, cut, dim in zip(whole[:5], short[:5], (1, 2, 1, 2, 1)):
        assert torch.equal(long.narrow(dim, long.shape[dim] - 8, 8), cut.narrow(dim, cut.shape[dim] - 8, 8))
    assert whole[0].shape[1] - short[0].shape[1] == whole[4].shape[1] - 8 - 1
    ids = short[0]
    assert all(tensor.shape[-1] == ids.shape[1] for tensor in short[:4]) and short[4].shape[1] == 8


def test_preview_tokens_that_decide_weigh_as_much_as_the_full_grid_and_repeats_little():
    rows, columns = planner.preview_grid(3, 6)
    weight = planner.decision_weights((3, 6)).view(rows, columns)
    decides = (weight == weight.max()).all(1)
    codes = planner.enlarge(np.arange(3)[:, None].repeat(6, 1), rows, columns)
    assert decides.tolist() == [row == 0 or codes[row, 0] != codes[row - 1, 0] for row in range(rows)]
    assert float(weight[decides].sum()) == pytest.approx(18)
    assert weight[~decides].unique().tolist() == pytest.approx([planner.COPY_WEIGHT * float(weight.max())])


def test_a_stage_can_start_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "running", lambda stage: stage.save())
    for stage, component, prefix in (
        ("planner", "vision_language_encoder", "planner."),
        ("decoder", "transformer", "dit."),
    ):
        train = {"planner": planner.train, "decoder": decoder.train}[stage]
        train(tmp_path / stage, replace(RECIPE, start=SMALL))
        state = common.read_state(tmp_path / stage)
        for name, tensor in common.read_component(SMALL, component).items():
            assert torch.equal(state[f"ema.{prefix}{name}"], tensor), name


def test_the_shares_of_right_plans_tell_a_planner_that_knows_from_one_that_does_not(monkeypatch):
    known = {}

    def recall(_planner, asked, preview):
        assert not (preview and asked[0].references)  # the pipeline makes no preview where there are references
        known["asked"] = asked
        return np.stack([scene.codes for scene in asked])

    monkeypatch.setattr(planner, "sample_plans", recall)
    assert planner.plans_right(None, 4, 6, 4, count=8, preview=True) == planner.edits_right(None, 3, 6, count=8) == 1.0
    assert all(scene.references for scene in known["asked"])
    monkeypatch.setattr(
        planner, "sample_plans", lambda _planner, asked, _preview=None, **_: 0 * recall(0, asked, False)
    )
    assert planner.plans_right(None, 3, 6, 2, count=8) == planner.edits_right(None, 3, 6, count=8) == 0.0


def test_steps_are_edits_as_often_as_asked(tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(Stage, "running", lambda stage: len(modes) < 60)
    monkeypatch.setattr(
        planner, "train_step", lambda _stage, drawn, mode, *_: modes.append((mode, bool(drawn[0].references)))
    )
    for share, least, most in ((0.0, 0, 0), (0.5, 15, 45), (1.0, 60, 60)):
        modes.clear()
        planner.train(tmp_path, replace(RECIPE, edits=share))
        count = sum(mode == "edit" for mode, _ in modes)
        assert least <= count <= most and all((mode == "edit") == edited for mode, edited in modes)


def test_mistakes_are_only_read_never_asked_for():
    torch.manual_seed(0)
    drawn = scenes(4, h=2, w=4)
    clean, wrong = (planner.to_sequence(drawn, "preview", share) for share in (0.0, 0.5))
    assert torch.equal(clean[4], wrong[4]) and not torch.equal(clean[0], wrong[0])
    prompt = planner.prompt_batch(drawn, preview=True).ids.shape[1]
    assert torch.equal(clean[0][:, :prompt], wrong[0][:, :prompt])
    assert torch.equal(clean[0][:, -7:], wrong[0][:, -7:])


# ---- export ----


def test_export_names_the_stages_that_were_not_trained(tmp_path):
    common.save_state({"ema.x": torch.ones(1)}, tmp_path / "runs" / "vae", {"step": 1, "seconds": 0})
    with pytest.raises(FileNotFoundError, match="no training state of vision, planner, decoder"):
        export.write_checkpoint(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_takes_stages_that_were_not_trained_from_the_checkpoint_they_started_at(tmp_path):
    name = "language_model.layers.0.self_attn.q_proj.weight"
    start = common.read_component(SMALL, "vision_language_encoder")
    name = next(n for n in start if n.endswith(name))
    trained = {f"ema.planner.{name}": torch.zeros_like(start[name]), "ema.planner.model.visual.x": torch.ones(1)}
    common.save_state(trained, tmp_path / "runs" / "planner", {"step": 1, "seconds": 0})
    export.write_checkpoint(tmp_path / "runs", tmp_path / "out", SMALL)
    for component in export.FILES:
        before, after = (common.read_component(f, component) for f in (SMALL, tmp_path / "out"))
        assert before.keys() == after.keys()
        assert {n for n in before if not torch.equal(before[n], after[n])} == ({name} & before.keys())


def test_the_benchmark_has_200_prompts_of_one_region_and_fewer_of_more_none_of_them_trained(tmp_path):
    export.write_benchmark(tmp_path)
    entries = {path.stem: json.loads(path.read_text())["data_list"] for path in tmp_path.glob("*.json")}
    assert {name: len(part) for name, part in entries.items()} == {str(n): c for n, (c, _) in export.PICTURES.items()}
    assert len(entries["1"]) == 200
    words = {word for part in entries.values() for entry in part for word in entry["sentence_list"]}
    assert words <= set(data.HELD_OUT)


def test_the_command_refuses_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["training", "vae", "--runs", str(tmp_path), "--device", "abacus"])
    with pytest.raises(ValueError, match="device 'abacus' is not known"):
        command.main()
