"""Training LoRAs: what is read, what is learnt, what is written, and that a run goes on wherever it ended."""

import argparse
import gc
import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comfyui_glm_image.cli import train_lora
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.geometry import preview_grid
from comfyui_glm_image.pipeline.loading.checkpoint import resolve
from comfyui_glm_image.pipeline.loading.memory_needs import CheckpointSizes
from comfyui_glm_image.pipeline.loading.placement import HEADROOM
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.pipeline.models import tiny
from comfyui_glm_image.pipeline.models.planner import VISION, Planner
from comfyui_glm_image.training import data, drawing, lora_pictures, lora_score
from comfyui_glm_image.training.lora import layers, memory, pictures, prepared, residuals
from comfyui_glm_image.training.lora import train as training
from comfyui_glm_image.training.lora.batches import Batches
from comfyui_glm_image.training.lora.planner_loss import PlannerLoss
from comfyui_glm_image.training.lora.prepared import Item
from comfyui_glm_image.training.lora.run_state import read_log
from comfyui_glm_image.training.lora.settings import LoraSettings
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pictures of three sizes with a table of captions."""
    folder = tmp_path_factory.mktemp("pictures")
    lora_pictures.write_top(folder, count=7, seed=3)
    return folder


@pytest.fixture
def settings(folder, tmp_path):
    def make(component="planner", **changed):
        values = {"model": "small", "rank": 2, "steps": 4, "batch": 2, "lr": 1e-2, "device": "cpu", "warmup": 0}
        return LoraSettings(component, **{"data": folder, "out": tmp_path / "run", **values, **changed})

    return make


def small(dtype=torch.float32):
    return GlmImage.from_pretrained("small", device="cpu", dtype=dtype)


def train(settings):
    pytest.importorskip("peft")
    return training.train(settings, report=lambda _text: None)


def losses(folder):
    return [line["loss"] for line in read_log(folder)]


def picture(path, size=(64, 64), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize("change", [
    {"component": "vae"}, {"rank": 0}, {"steps": 0}, {"batch": True}, {"lr": 0}, {"lr": float("nan")}, {"alpha": -1},
    {"schedule": "linear"}, {"targets": "to_q"}, {"drop": 1.5}, {"pixels": 100}, {"seed": -1}, {"samples": ("",)},
    {"save_every": 0}, {"weight_decay": 2}, {"keep_layers": -1}, {"keep_layers": 2, "checkpointing": False},
])  # fmt: skip
def test_a_setting_out_of_range_is_refused_when_it_is_made(settings, change):
    with pytest.raises(InputError):
        settings(**change)


@pytest.mark.parametrize(("words", "message"), [
    (["--rank", "0"], "--rank 0 is not accepted; use a whole number from 1 to 16777216"),
    (["--targets", "to_q"], "'to_q' is no layer of the planner that can be adapted"),
    (["--threads", "0"], "--threads 0 is not accepted"),
    (["--threads", str(2**64)], "use 1 to 1024"),
    (["--device", "tpu"], "device 'tpu' is not known"),
])  # fmt: skip
def test_the_command_refuses_a_wrong_option_in_one_line_and_writes_nothing(folder, tmp_path, capsys, words, message):
    pytest.importorskip("peft")
    command = ["train-lora", "planner", str(folder), "-o", str(tmp_path / "run"), "--model", "small", *words]
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_commands_defaults_are_the_settings_own(folder, tmp_path):
    parser = argparse.ArgumentParser()
    train_lora.add_arguments(parser)
    args = parser.parse_args(["decoder", str(folder), "-o", str(tmp_path)])
    assert train_lora.settings_of(args) == LoraSettings("decoder", folder, tmp_path)
    args = parser.parse_args(["decoder", str(folder), "-o", str(tmp_path), "--no-checkpointing", "--sample", "a"])
    assert train_lora.settings_of(args) == LoraSettings(
        "decoder", folder, tmp_path, checkpointing=False, samples=("a",)
    )


def test_captions_lie_beside_images_or_in_a_table(tmp_path):
    picture(tmp_path / "a" / "one.png", (70, 130))
    (tmp_path / "a" / "one.txt").write_text("a sign\n", encoding="utf-8")
    picture(tmp_path / "two.JPG")
    (tmp_path / "two.txt").write_text('a card that says "É"', encoding="utf-8")
    found = pictures.read_folder(tmp_path)
    assert [(p.path.name, p.caption, p.size) for p in found] == [
        ("one.png", "a sign", (128, 64)), ("two.JPG", 'a card that says "É"', (64, 64)),
    ]  # fmt: skip
    (tmp_path / "a" / "metadata.csv").write_text('file_name,caption\none.png,"a, b"\n', encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "two.JPG", "text": "c"}\n', encoding="utf-8")
    assert [p.caption for p in pictures.read_folder(tmp_path)] == ["a, b", "c"]


def test_a_turned_photograph_has_the_size_that_it_is_seen_with(tmp_path):
    image = Image.new("RGB", (128, 64))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif)
    (tmp_path / "photo.txt").write_text("a wall", encoding="utf-8")
    assert pictures.read_folder(tmp_path)[0].size == (128, 64)


@pytest.mark.parametrize(("files", "word"), [
    ({}, "no images"),
    ({"one.txt": "a"}, "no images"),
    ({"one.png": None}, "no caption"),
    ({"one.png": None, "one.txt": " "}, "empty"),
    ({"one.png": "no picture", "one.txt": "a"}, "cannot be read"),
    ({"one.png": None, "metadata.jsonl": "{"}, "no JSON"),
    ({"one.png": None, "metadata.jsonl": '{"file_name": "one.png"}'}, "file_name or none"),
    ({"metadata.csv": "file_name,text\nnone.png,a\n"}, "not there"),
])  # fmt: skip
def test_a_folder_that_cannot_be_learnt_from_is_refused_by_name(tmp_path, files, word):
    for name, text in files.items():
        picture(tmp_path / name) if text is None else (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=word):
        pictures.read_folder(tmp_path)


def test_the_bundled_loras_pictures_show_what_their_captions_leave_out(folder, tmp_path):
    for found in pictures.read_folder(folder):
        assert not {"top", "middle", "bottom", "label", "line"} & set(found.caption.split())
        pixels = np.asarray(Image.open(found.path))
        assert (pixels[63, :] == data.COLOURS["white"]).all(-1).mean() > 0.6  # a shape may stand there on white paper
    lora_pictures.write_top_prompts(tmp_path / "held")
    prompts = json.loads((tmp_path / "held" / "1.json").read_text())["data_list"]
    assert len(prompts) == 50 and all(data.held_out(prompt["sentence_list"][0]) for prompt in prompts)


def test_the_bundled_planner_lora_puts_words_at_the_top(tmp_path):
    """A tenth of the measured 50 prompts, so that a file that does nothing is seen."""
    lora_pictures.write_top_prompts(tmp_path)
    prompts = [entry["prompt"] for entry in json.loads((tmp_path / "1.json").read_text())["data_list"][:10]]
    file = ROOT / "checkpoints" / "loras" / "glm_image_small_planner_top.safetensors"
    assert file.stat().st_size < 300_000
    model = GlmImage.from_pretrained("small", device="cpu", dtype=torch.float32, planner_loras=[file])
    plans = model.plan(prompts, 96, 192, seed=0).prior_token_ids_d32.view(-1, 3, 6)
    lettered = [{y for y in range(3) for x in range(6) if data.code_slot(int(codes[y, x]))} for codes in plans]
    assert sum(rows == {0} for rows in lettered) >= 8


def test_the_bundled_decoder_lora_draws_digits_for_letters():
    """A few of the measured 50 words."""
    model = GlmImage.from_pretrained("small", device="cpu", dtype=torch.float32)
    digits = lora_pictures.held_prompts(lora_pictures.digit_scene)
    plans = [(word, model.plan(prompt, 96, 192, seed=i)) for i, (word, prompt) in enumerate(digits[:5])]
    assert lora_score.score(model, plans)[0] >= 4
    lora_score.merge(model.transformer, ROOT / "checkpoints" / "loras" / "glm_image_small_digits.safetensors")
    letters, digits = lora_score.score(model, plans)
    assert letters <= 1 and digits >= 4


def items_of(count, grids=((2, 4),), seed=0):
    rng = random.Random(seed)
    return [Item(f"{k}", rng.choice(grids), drawing.FONT) for k in range(count)]


def test_every_epoch_has_every_item_once_in_batches_of_one_grid():
    batches = Batches(items_of(23, ((2, 4), (3, 6))), 4, seed=1)
    epochs = [[batches[e * batches.per_epoch + k] for k in range(batches.per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert sorted(int(item.caption) for batch in epoch for item in batch) == list(range(23))
        assert all(len({item.grid for item in batch}) == 1 and len(batch) <= 4 for batch in epoch)
    assert epochs[0] != epochs[1]
    assert Batches(items_of(23, ((2, 4), (3, 6))), 4, seed=1)[17] == batches[17]  # at once, as a resumed run asks


def test_the_head_loss_is_cross_entropy_and_its_gradient(monkeypatch):
    monkeypatch.setattr(layers, "LOGITS", 40)  # in pieces
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(11, 6, generator=generator, requires_grad=True), torch.randn(9, 6, generator=generator)
    targets, weights = torch.randint(9, (11,), generator=generator), torch.rand(11, generator=generator)
    (loss, each), hits = layers.head_loss(hidden, head, targets, weights)
    (gradient,) = torch.autograd.grad(3 * loss, hidden)
    logits = hidden @ head.T
    expected = F.cross_entropy(logits, targets, reduction="none")
    assert_close(each, expected.detach())
    assert torch.equal(hits, (logits.argmax(1) == targets).float())
    assert_close(gradient, torch.autograd.grad(3 * (expected * weights).sum(), hidden)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapted_layer_computes_what_pefts_does(settings, bias):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(12, 8, bias=bias)})
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"]), module)
    layer = module["q_proj"]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 5, 12, requires_grad=True)
    wanted = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    results = []
    for _ in range(2):
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
        layers.streamline(module)
    assert_close(*results)


def test_what_is_taught_is_what_planning_does(settings, folder):
    """A greedy plan of the planner is what it finds likeliest when it is taught: prompts, positions and order agree."""
    model = small()
    prompts = ['a red sign that says "OPEN"', 'a blue card with the word "SUNNY" in white at the top']
    plan = model.plan(prompts, 64, 128, temperature=0)

    class Planned(Item):
        def tensors(self):
            row = prompts.index(self.caption)
            return {"preview": plan.preview_token_ids[row], "full": plan.prior_token_ids_d32[row]}

    for layer in model.planner.model.language_model.layers:
        layer.self_attn.fused = None
    for checkpointing in (True, False):
        loss = PlannerLoss(model.planner, model.settings.prompts, checkpointing)
        with torch.no_grad():
            figures = loss([Planned(prompt, plan.grid, drawing.FONT) for prompt in prompts], CPU, None)
        assert (figures["preview_right"], figures["full_right"]) == (1, 1)


def test_an_image_is_kept_as_the_tokens_that_show_it(settings):
    model, chosen = small(), settings()
    found = pictures.read_folder(chosen.data)
    items = prepared.prepare(model, found, chosen)
    scenes = [json.loads(line) for line in (chosen.data / "metadata.jsonl").read_text().splitlines()]
    assert [item.caption for item in items] == [scene["text"] for scene in scenes]
    for item in items:
        tokens, (h, w) = item.tensors(), preview_grid(*item.grid)
        assert tokens["full"].shape == (item.grid[0] * item.grid[1],)
        rows, columns = np.arange(h) * item.grid[0] // h, np.arange(w) * item.grid[1] // w
        full = tokens["full"].view(item.grid).numpy()
        assert (tokens["preview"].view(h, w).numpy() == full[rows][:, columns]).all()


def test_a_preview_of_a_large_image_is_the_image_made_small(settings, tmp_path):
    image = Image.effect_mandelbrot((1024, 1024), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    image.save(tmp_path / "large.png")
    (tmp_path / "large.txt").write_text("a picture", encoding="utf-8")
    model = small()
    (item,) = prepared.prepare(model, pictures.read_folder(tmp_path), settings(data=tmp_path))
    tokens = item.tensors()
    assert (tokens["full"].numel(), tokens["preview"].numel()) == (1024, 256)
    expected = model.plan_of_image(image.resize((512, 512), Image.Resampling.LANCZOS))
    assert torch.equal(tokens["preview"], expected.prior_token_ids_d32[0])


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_only_what_changed_is_made_again(settings, tmp_path, component):
    paths = [picture(tmp_path / "data" / f"{name}.png", colour=name) for name in ("red", "blue")]
    for path in paths:
        path.with_suffix(".txt").write_text(f'a {path.stem} sign that says "HI"', encoding="utf-8")
    model, chosen = small(), settings(component, data=tmp_path / "data")

    def made():
        seen = []
        items = prepared.prepare(
            model, pictures.read_folder(chosen.data), chosen, lambda done, *_, **__: seen.append(done)
        )
        return items, len(seen) // (1 if component == "planner" else 3)

    first, count = made()
    assert count == 2 and made() == (first, 0)
    paths[0].with_suffix(".txt").write_text('a red sign that says "HO"', encoding="utf-8")
    second, count = made()
    assert count == 1 and [a == b for a, b in zip(first, second)] == [True, False]  # blue, red by name
    picture(paths[1], colour="green")
    assert made()[1] == 1
    second[1].file.write_bytes(second[1].file.read_bytes()[:50])  # a cut file
    assert made()[1] == 1


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_a_run_learns_what_its_images_show_and_leaves_the_base_alone(settings, tmp_path, component):
    pytest.importorskip("peft")
    for number in range(4):  # colours that the small checkpoint never saw
        picture(tmp_path / "data" / f"{number}.png", (128, 64), (128, 100 + number, 128))
        (tmp_path / "data" / f"{number}.txt").write_text('a grey sign that says "HI"', encoding="utf-8")
    sample = ('a red sign that says "HI"',)
    chosen = settings(component, data=tmp_path / "data", steps=40, targets="all", samples=sample, drop=0.0, lr=3e-3)
    model = small()
    before = {key: tensor.clone() for key, tensor in model.components[chosen.folder].state_dict().items()}
    run = training.Run(chosen, model, pictures.read_folder(chosen.data), report=lambda _text: None)

    def held():
        with torch.no_grad():
            figures = [run.loss(run.batches[k], CPU, torch.Generator().manual_seed(k)) for k in range(1000, 1010)]
        return sum(each["loss"].item() for each in figures)

    at_first = held()
    path = run.finish()
    assert held() < 0.7 * at_first and len(losses(chosen.out)) == 40
    assert sorted(p.name for p in (chosen.out / "samples").iterdir()) == ["000000_0.png", "000040_0.png"]
    assert (chosen.out / "loss.png").is_file() == bool(importlib.util.find_spec("matplotlib"))
    after = {key.replace(".base_layer", ""): tensor for key, tensor in run.module.state_dict().items()}
    kept = {key for key in before if component == "decoder" or not key.startswith(VISION)}
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(path))


def test_steps_and_samples_of_a_planner_are_the_same_without_its_vision_tokenizer(settings, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    seen = []

    def trained(name):
        ways = {"samples": ('a red sign that says "HI"',), "sample_every": 1, "sample_steps": 2}
        chosen, model = settings(steps=2, out=tmp_path / name, **ways), small()
        tokenizer = weakref.ref(model.planner.model.visual), weakref.ref(model.planner.model.vqmodel)
        run = training.Run(chosen, model, pictures.read_folder(chosen.data), report=lambda _text: None)
        gc.collect()
        seen.append([part() is None for part in tokenizer])
        written = load_file(run.finish())
        seen[-1].append(model.memory.step is None)  # what plans of samples needed
        return written, {path.name: path.read_bytes() for path in (chosen.out / "samples").iterdir()}

    ours, samples = trained("without")
    monkeypatch.setattr(Planner, "drop_vision", lambda self: None)
    theirs, of_the_whole = trained("with")
    assert seen == [[True, True, True], [False, False, True]]
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert samples == of_the_whole and len(samples) == 3


def test_the_needs_of_a_planner_are_those_of_what_its_steps_hold(settings):
    sizes, planner = CheckpointSizes.of(resolve("small").folder), small().planner

    def needs(device):
        return memory.training_needs(sizes, settings(), torch.float32, (2, 4), torch.device(device))

    def held():
        return sum(tensor.nbytes for tensor in planner.parameters())

    whole = held()
    planner.drop_vision()
    assert needs("cpu").weights == held() and needs("cpu").preparing > whole
    planner.leave_on_host(CPU)  # as beside an accelerator
    assert needs("cuda").weights == held()


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_rounded_weights_are_refused_before_anything_is_prepared(settings, tmp_path, component):
    pytest.importorskip("peft")
    forms = {"vision_language_encoder": "w8", "transformer": "w4"}
    rounded = quantize(Quantization(resolve("small"), tmp_path / "small", forms))
    wanted = settings(component, model=str(rounded))
    with pytest.raises(InputError, match=f"the {component}'s weights are rounded to w[48]; a LoRA is trained on whole"):
        training.train(wanted, print)
    assert not wanted.out.exists()


def test_a_planner_that_can_be_trained_but_not_prepared_for_is_refused(settings, monkeypatch):
    needs, folder = memory.TrainingNeeds(8 << 30, 4 << 30, 0, 0, layer=1 << 30, layers=9), resolve("small").folder
    monkeypatch.setattr(memory, "training_needs", lambda *_: needs)

    def check(free):
        monkeypatch.setattr(memory, "memory_of", lambda device: SimpleNamespace(free=free * 2**30 / (1 - HEADROOM) + 1))
        return memory.check(folder, settings(), CPU, torch.float32, (2, 4))

    with pytest.raises(InputError, match="about 8.0 GiB to prepare images, then 4.0 GiB: weights 4.0 GiB"):
        check(7)
    assert check(8).keep == 4  # there is nothing of preparing when steps run


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_recomputing_layers_changes_no_gradient(settings, tmp_path, component):
    curves = []
    for keep, checkpointing in ((0, True), (1, True), (None, True), (0, False)):
        ways = {"keep_layers": keep, "checkpointing": checkpointing}
        chosen = settings(component, steps=3, **ways, out=tmp_path / f"{keep} {checkpointing}")
        train(chosen)
        curves.append(losses(chosen.out))
    for curve in curves[1:]:
        assert_close(curve, curves[0], rtol=1e-5, atol=1e-6)


class Attentions(TorchDispatchMode):
    """Counts how often attention is computed, whatever asks for it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "attention" in function.name() and "backward" not in function.name()
        return function(*args, **(kwargs or {}))


def test_where_sequences_are_long_a_kept_layer_brings_attention_that_is_computed_once(monkeypatch):
    torch.manual_seed(0)
    planner = Planner(tiny.planner_config(layers=4)).requires_grad_(False)
    tables = planner.rope_tables(torch.arange(6).expand(3, 1, -1))
    embedded = torch.randn(1, 6, planner.config.text_config.hidden_size, requires_grad=True)

    def step(keep):
        with Attentions() as seen:
            hidden = layers.run_language_model(planner.model.language_model, embedded, tables, None, 4, True, keep)
            return torch.autograd.grad(hidden.square().sum(), embedded)[0], seen.count

    expected, count = step(2)
    assert count == 4 + 3  # all layers but the last again
    assert not layers.keeps_attention(1024, 1024) and layers.keeps_attention(1025, 1024)
    monkeypatch.setattr(layers, "keeps_attention", lambda *_: True)
    (least, again), (kept, once) = step(0), step(1)
    assert (again, once) == (7, 4)
    assert torch.equal(least, expected) and torch.equal(kept, expected)


def test_the_gradient_of_the_gate_is_that_of_plain_operators(monkeypatch):
    x = torch.randn(2, 3, 8, requires_grad=True)

    def gradient_of(product):
        return torch.autograd.grad((product * torch.arange(4.0)).sum(), x)[0]

    gate, up = x.chunk(2, -1)
    expected = gradient_of(F.silu(gate) * up)
    for cached in (8, 1 << 20):  # a token at a time, and all at once
        monkeypatch.setattr(layers, "CACHED", cached)
        product = layers.swiglu(x.clone())  # whose gradient is written over it
        assert torch.equal(product, F.silu(gate) * up)
        assert_close(gradient_of(product), expected)


@pytest.mark.parametrize("apart", [1, 3, 9])
def test_inputs_of_layers_are_added_up_again_to_the_bit(monkeypatch, apart):
    monkeypatch.setattr(residuals, "APART", apart)
    torch.manual_seed(0)
    config = replace(tiny.planner_config(), text_config=replace(tiny.planner_config().text_config, num_hidden_layers=7))
    planner = Planner(config).requires_grad_(False)
    model, inputs = planner.model.language_model, []
    for layer in model.layers:
        layer.self_attn.fused = None
        layer.input_layernorm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    tables = planner.rope_tables(torch.arange(6).expand(3, 1, -1))
    embedded = torch.randn(1, 6, config.text_config.hidden_size, requires_grad=True)

    def gradient(checkpointing):
        inputs.clear()
        hidden = layers.run_language_model(model, embedded, tables, None, 4, checkpointing)
        first, held = [x.detach().clone() for x in inputs], [weakref.ref(x.untyped_storage()) for x in inputs]
        return hidden, first, held

    hidden, first, _ = gradient(False)
    (expected,) = torch.autograd.grad(hidden.square().sum(), embedded)
    hidden, _, held = gradient(True)
    inputs.clear()
    gc.collect()
    assert [i for i, storage in enumerate(held) if storage() is not None] == list(range(0, 7, apart))
    (found,) = torch.autograd.grad(hidden.square().sum(), embedded)
    again = dict(zip(range(len(inputs) - 1, -1, -1), inputs))
    assert all(torch.equal(x, first[i]) for i, x in again.items())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_as_many_layers_are_kept_as_memory_has_room_for(settings, monkeypatch, component):
    folder, dtype, grid = resolve("small").folder, torch.float32, (4, 6)

    def needs(free=1 << 50, **changes):
        monkeypatch.setattr(memory, "memory_of", lambda device: SimpleNamespace(free=free))
        return memory.check(folder, settings(component, **changes), CPU, dtype, grid)

    monkeypatch.setattr(memory, "keeps_attention", lambda *_: False)
    none = needs(keep_layers=0)
    room = int((none.total + 2.5 * none.layer) / (1 - HEADROOM))
    assert (none.keep, needs().keep, needs(room).keep) == (0, none.layers, 2)
    assert needs(room).total == none.total + 2 * none.layer
    assert needs(checkpointing=False).keep == 0
    with pytest.raises(InputError, match="fewer --keep-layers"):
        needs(room, keep_layers=3)
    monkeypatch.setattr(memory, "keeps_attention", lambda *_: True)
    with_attention = needs(keep_layers=1)
    assert with_attention.total == none.total + none.layer + with_attention.first
    assert (with_attention.first > 0) == (component == "planner")
    room = int((with_attention.total + 0.5 * none.layer) / (1 - HEADROOM))
    assert (needs(room).keep, needs(room - with_attention.first // 2 - none.layer).keep) == (1, 0)


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(settings, tmp_path, component):
    whole, parts = (settings(component, out=tmp_path / name, save_every=1) for name in ("whole", "parts"))
    train(whole)

    def stop(done, _total, **about):
        if about["stage"] == "train":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY", 2)
        with pytest.raises(KeyboardInterrupt):
            training.train(parts, report=lambda _text: None, progress=stop)
    assert 0 < len(losses(parts.out)) < whole.steps
    train(parts)
    assert losses(parts.out) == losses(whole.out)
    ours, theirs = (load_file(run.out / training.FILES[component]) for run in (parts, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_that_was_killed_goes_on_to_the_same_curve(settings, tmp_path):
    pytest.importorskip("peft")
    whole, killed = settings(steps=40, out=tmp_path / "whole"), tmp_path / "killed"
    train(whole)
    words = ["planner", whole.data, "-o", killed, "--model", "small", "--rank", "2", "--batch", "2", "--lr", "1e-2"]
    words += ["--warmup", "0", "--steps", "40", "--device", "cpu", "--save-every", "3"]
    code = "import sys; sys.path.insert(0, 'tests'); import conftest; from comfyui_glm_image.cli.main import main; "
    command = [sys.executable, "-c", code + "sys.exit(main(sys.argv[1:]))", "train-lora", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop_after = random.randint(5, 30)
    deadline = time.monotonic() + 120
    while len(read_log(killed)) < stop_after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(read_log(killed)) < 40
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_close(losses(killed), losses(whole.out), rtol=1e-4, atol=1e-5)  # threads may differ
    assert [line["step"] for line in read_log(killed)] == list(range(1, 41))


def test_a_run_of_other_settings_or_images_is_not_gone_on_with(settings, tmp_path):
    train(settings(steps=1))
    for changed in ({"rank": 3}, {"lr": 0.1}, {"seed": 1}):
        with pytest.raises(InputError, match="use the same, or another folder"):
            train(settings(**changed))
    lora_pictures.write_top(tmp_path / "others", count=3, seed=4)
    with pytest.raises(InputError, match="images"):
        train(settings(data=tmp_path / "others"))
    train(settings(steps=2))  # longer is no other run
    assert len(losses(settings().out)) == 2


def test_too_little_memory_is_said_before_anything_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda _device: memory_of_one_mebibyte)
    with pytest.raises(InputError, match=r"training needs about .*--pixels"):
        train(settings())
    assert not (settings().out / "cache").exists()
    train(settings(steps=1, anyway=True))


class memory_of_one_mebibyte:
    free = total = 1 << 20


def test_without_peft_one_sentence_says_what_to_install(settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"comfyui-glm-image\[train\]"):
        training.train(settings(), report=lambda _text: None)


def test_the_planners_file_is_pefts_and_counts_the_same_without_its_settings(settings, reference_module):
    """transformers with peft computes what our planner with the adapter in training does."""
    pytest.importorskip("peft")
    from peft import PeftModel
    from transformers import GlmImageForConditionalGeneration

    chosen = settings(targets="all", rank=3, alpha=7.5, steps=6)
    path = train(chosen)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        keys = list(file.keys())
    assert header == json.loads((chosen.out / "adapter_config.json").read_text())
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    assert header["lora_alpha"] == header["r"] == 3
    model = small()
    peer = GlmImageForConditionalGeneration.from_pretrained(
        ROOT / "checkpoints/small/vision_language_encoder", dtype=torch.float32
    )
    peer = PeftModel.from_pretrained(peer, chosen.out).eval()
    items = prepared.prepare(model, pictures.read_folder(chosen.data), chosen)[:2]
    items = [replace(items[0], caption=items[0].caption)] * 2
    parameters = training.add_adapter(model.planner, chosen)
    stored = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            factor = 1 / chosen.scale if "lora_B" in name else 1
            parameter.copy_(stored[f"base_model.model.{name}"].float() * factor)
    for layer in model.planner.model.language_model.layers:
        layer.self_attn.fused = None
    layers.streamline(model.planner)
    loss = PlannerLoss(model.planner, model.settings.prompts)
    ids, positions, mask, targets, preview = loss.sequence(items)
    assert mask is None  # captions of one length
    figures = loss(items, CPU, None)
    with torch.no_grad():
        logits = peer(input_ids=ids, position_ids=positions).logits[:, -targets.shape[1] :]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert_close(figures["preview"], each[:, :preview].mean(), rtol=1e-4, atol=1e-5)
    assert_close(figures["full"], each[:, preview:].mean(), rtol=1e-4, atol=1e-5)


def test_the_decoders_file_loads_into_diffusers_with_the_strength_it_had_in_training(settings):
    pytest.importorskip("peft")
    diffusers = pytest.importorskip("diffusers")
    chosen = settings("decoder", targets="all", rank=3, alpha=7.5, steps=3, lr=0.05)
    model = small()
    run = training.Run(chosen, model, pictures.read_folder(chosen.data), report=lambda _text: None)
    path = run.finish()
    peer = diffusers.GlmImageTransformer2DModel.from_pretrained(
        ROOT / "checkpoints/small/transformer", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    latents, glyphs = torch.randn(2, 16, 8, 16, generator=generator), torch.randn(2, 5, 96, generator=generator)
    prior = torch.randint(0, 640, (2, 32), generator=generator)
    times, sizes = torch.tensor([700.0, 100.0]), torch.tensor([[64.0, 128.0]] * 2)
    given = (prior, torch.zeros_like(prior, dtype=torch.bool), times, sizes, torch.zeros_like(sizes))
    with torch.no_grad():
        ours = run.module(latents, glyphs, *given)
        plain = peer(latents, glyphs, *given, return_dict=False)[0]
        peer.load_lora_adapter(path)
        theirs = peer(latents, glyphs, *given, return_dict=False)[0]
    assert (ours - plain).abs().max() > 0.05
    assert_close(ours, theirs, rtol=0.02, atol=0.02)  # the file has bfloat16
