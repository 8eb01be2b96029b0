"""The benchmark of a LoRA's step: what it counts on either side, and how many layers it keeps."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from comfyui_glm_image.pipeline.loading.checkpoint import PLANNER
from comfyui_glm_image.pipeline.models import tiny
from comfyui_glm_image.pipeline.models.on_meta import on_meta
from comfyui_glm_image.pipeline.models.planner import VISION, Planner
from comfyui_glm_image.training import lora_benchmark
from comfyui_glm_image.training.lora_benchmark import most_layers

CONFIG = tiny.planner_config(layers=5)
CONFIG = replace(CONFIG, vision_config=replace(CONFIG.vision_config, image_size=2048, hidden_size=128))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the benchmark on a planner that is mostly vision tokenizer -> its JSON."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    monkeypatch.setitem(lora_benchmark.CONFIGURATIONS, "tiny", {PLANNER: CONFIG})

    def run(*words):
        sizes = {"--config": "tiny", "--side": "256", "--prompt-tokens": "8", "--repeats": "1", "--rank": "4"}
        options = [word for pair in sizes.items() for word in pair]
        monkeypatch.setattr("sys.argv", ["lora_benchmark", "--labels", *options, *words])
        lora_benchmark.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_both_sides_count_the_weights_of_their_modules_and_the_adapter_with_its_moments(run):
    with on_meta():
        numbers = {name: tensor.numel() for name, tensor in Planner(CONFIG).named_parameters()}
    text = CONFIG.text_config
    kv, inner = text.num_key_value_heads * text.head_dim, text.intermediate_size
    sides = [(text.hidden_size, width) for width in (text.hidden_size, text.hidden_size, kv, kv, 2 * inner, inner)]
    adapter = text.num_hidden_layers * sum(4 * sum(pair) for pair in sides)
    results = run("--keep-layers", "1")["results"].values()
    ours, peer = (found["weights"] // 4 - 3 * adapter for found in results)
    assert peer == sum(numbers.values())
    assert ours == peer - sum(n for name, n in numbers.items() if name.startswith(VISION)) < peer
    assert all(found["whole"] == found["weights"] + found["step"] for found in results)


def test_as_many_layers_are_kept_as_the_peers_memory_has_room_for(run):
    found = run("--keep-layers", "auto")
    ours, peer = found["results"].values()
    assert 0 < found["kept"] < CONFIG.text_config.num_hidden_layers - 1
    assert ours["whole"] <= peer["whole"] and ours["step"] > peer["step"]
    assert found["ratios"]["whole"] == ours["whole"] / peer["whole"]
    more = run("--keep-layers", str(found["kept"] + 1))
    assert more["kept"] == found["kept"] + 1 and more["ratios"]["whole"] > 1


@pytest.mark.parametrize(("limit", "kept"), [(9, 0), (10, 0), (12, 0), (13, 1), (21, 3), (22, 4), (99, 4)])
def test_the_most_layers_within_a_limit_are_found(limit, kept):
    assert most_layers([10, 13, 15, 21, 22].__getitem__, 4, limit) == kept


@pytest.mark.parametrize("text", ["-1", "all", "1.5", ""])
def test_another_number_of_layers_is_refused(text):
    assert [lora_benchmark.layers_to_keep(word) for word in ("auto", "0", "19")] == ["auto", 0, 19]
    with pytest.raises(argparse.ArgumentTypeError, match="use auto, or a whole number from 0"):
        lora_benchmark.layers_to_keep(text)


def test_what_an_accelerator_leaves_in_host_memory_is_not_counted():
    module = torch.nn.ModuleDict({"here": torch.nn.Linear(3, 5, device="meta"), "host": torch.nn.Linear(7, 5)})
    side = lora_benchmark.Side(module, None, torch.device("meta"))
    assert side.weights == 4 * (3 * 5 + 5)
