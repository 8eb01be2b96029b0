"""Training data, the designed latent, and stages that stop and go on. Nothing here trains for more than a few steps."""

import itertools
import json
import random

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
    curves,
    data,
    decoder,
    export,
    latent,
    models,
    planner,
    vision,
)
from comfyui_glm_image.training.common import Recipe, Stage
from PIL import Image

CPU = torch.device("cpu")
FIGURES = ("psnr", "tokens", "full", "preview", "counting", "flow", "routing")
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
    error = latent.pictures(z).astype(float) - data.render(*grids)
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


def test_states_are_written_in_small_pieces_and_old_ones_leave(tmp_path):
    tensors = {f"t{i}": torch.full((1 << 20,), float(i)) for i in range(9)}  # 4 MiB each
    common.save_pieces(tensors, tmp_path, {"step": 1, "seconds": 0})
    common.save_pieces(tensors, tmp_path, {"step": 2, "seconds": 0})
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == common.read_meta(tmp_path)["files"] == [f"step2-0{i}.safetensors" for i in range(3)]
    assert all(path.stat().st_size < 16 << 20 for path in tmp_path.iterdir())
    assert all((common.read_pieces(tmp_path)[name] == tensor).all() for name, tensor in tensors.items())


def test_a_state_that_was_being_written_is_not_trusted(tmp_path):
    common.save_pieces({"t": torch.ones(1)}, tmp_path, {"step": 1, "seconds": 0})
    (tmp_path / "step2-00.safetensors").write_bytes(b"half")
    assert common.read_pieces(tmp_path)["t"] == 1


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
    state = common.read_pieces(tmp_path)
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
    marked = [int(mark) for mark in places[0, 0, : prompt - 1] if mark != planner.UNMARKED]
    assert marked == [0, 1, 2, 3, data.MAX_WORD + 3, 0, 1, data.MAX_WORD + 1]
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
    common.save_pieces({"ema.x": torch.ones(1)}, tmp_path / "runs" / "vae", {"step": 1, "seconds": 0})
    with pytest.raises(FileNotFoundError, match="no training state of vision, planner, decoder"):
        export.write_checkpoint(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


def test_curves_of_every_stage_are_drawn_from_the_logs(tmp_path):
    for stage in ("vae", "vision", "planner", "decoder"):
        lines = [
            {"step": i, "seconds": 60 * i, **{name: (k + 1) / i for k, name in enumerate(FIGURES)}} for i in range(1, 4)
        ]
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "log.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"plans": 1.0, "words": 1.0}])))
    curves.write_curves(tmp_path, tmp_path / "curves.png")
    colours = {colour for _, colour in Image.open(tmp_path / "curves.png").getcolors(1 << 16)}
    assert (0x28, 0x50, 0xC8) in colours and (0xC8, 0x28, 0x28) in colours
    assert curves.points_of([*lines, {"plans": 0.25}], "plans") == [(3.0, 0.25)]
