"""LoRA on the planner: tokens equal transformers with peft, and files that do not fit are refused in a sentence."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage, Plan
from comfyui_glm_image.pipeline.devices.layer_offload import offload_layers
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError
from comfyui_glm_image.pipeline.geometry import preview_grid
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED
from comfyui_glm_image.pipeline.loading.lora_files import by_layer, read_planner_lora
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models import lora as loras
from comfyui_glm_image.pipeline.models.config import GenerationConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.lora import LayerLora, apply_loras, change_weight
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.models.weight_forms import CodedLinear, W8Linear, round_layers
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

GREEDY = GenerationConfig(temperature=0.0, top_p=1.0, top_k=0)
GRID = (3, 5)
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_up_proj", "down_proj"]
KINDS = {
    "plain": {"target_modules": ATTENTION, "lora_alpha": 16},  # as the one public trainer of planners
    "every": {"target_modules": ATTENTION + MLP, "lora_alpha": 8},
    "patterns": {
        "target_modules": ATTENTION + MLP,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {r"layers\.0\..*": 24, "self_attn.o_proj": 3},
    },
    "rslora": {"target_modules": ATTENTION + MLP, "lora_alpha": 8, "use_rslora": True},
    "dora": {"target_modules": ATTENTION + MLP, "lora_alpha": 8, "use_dora": True},
    "bias": {"target_modules": ATTENTION + MLP, "lora_alpha": 12, "lora_bias": True},
    "all biases": {"target_modules": ["k_proj", "down_proj"], "lora_alpha": 8, "bias": "all"},
}


@pytest.fixture(scope="module")
def base(references):
    """Our planner as it is, what it needs to plan, and transformers' model of the same weights."""
    folder, pipeline = references("plain")
    path = folder / "vision_language_encoder"
    config = VisionLanguageConfig.from_json(path / "config.json")
    ours, encoder = (
        load_module(Planner, config, path, "cpu", torch.float32),
        PromptEncoder(folder / "processor", config),
    )
    grids = GRID, preview_grid(*GRID)
    batch = collate([encoder.encode("a red 'HELLO' on a wall", *grids)], *grids, config)
    content = [{"type": "text", "text": "a red 'HELLO' on a wall"}]
    settings = {"return_tensors": "pt", "target_h": GRID[0] * 32, "target_w": GRID[1] * 32}
    inputs = pipeline.processor.apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, processor_kwargs=settings
    )
    return SimpleNamespace(
        folder=folder,
        path=path,
        config=config,
        ours=ours,
        batch=batch,
        theirs=pipeline.vision_language_encoder,
        inputs=inputs,
    )


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Folders as peft saves random adapters of every kind, and a second one of q, k and v."""
    peft = pytest.importorskip("peft")
    home = tmp_path_factory.mktemp("adapters")
    second = {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"], "lora_alpha": 10}
    for seed, (kind, settings) in enumerate((KINDS | {"second": second}).items()):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            copy.deepcopy(base.theirs), peft.LoraConfig(r=4, init_lora_weights=False, **language_model_only(settings))
        )
        stir(model, kind)
        model.save_pretrained(home / kind)
    keep_language_model(home / "all biases" / "adapter_model.safetensors")
    return home


def keep_language_model(file) -> None:
    """Biases of the vision tokenizer, which peft saves as well, were not trained."""
    kept = {key: tensor for key, tensor in load_file(file).items() if "language_model" in key}
    assert any(key.endswith("k_proj.base_layer.bias") for key in kept)
    save_file(kept, file)


def language_model_only(settings: dict) -> dict:
    names = "|".join(settings["target_modules"])
    return settings | {"target_modules": rf".*language_model.*\.({names})"}


def stir(model, kind: str) -> None:
    """Give an adapter numbers that show: peft begins with unit lengths and biases of zero."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        with torch.no_grad():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * noise)
            elif "lora_" in name and parameter.ndim == 1:
                parameter.copy_(noise)
            elif "lora_" in name:
                parameter.copy_(0.3 * noise)
            elif kind == "all biases" and name.endswith("k_proj.base_layer.bias"):
                parameter.add_(noise)


def reference_tokens(model, inputs, count: int) -> torch.Tensor:
    out = model.generate(**inputs, max_new_tokens=count, do_sample=False, temperature=None, top_p=None, top_k=None)
    return out[:, inputs["input_ids"].shape[1] :]


def planned(planner, batch, rows: int | None = None) -> torch.Tensor:
    tokens = decode(planner, prefill(planner, batch, "cpu"), GREEDY, [0], rows=rows)
    return torch.cat(list(tokens.values()), dim=1)


def with_loras(base, *pairs, fused: bool = True) -> Planner:
    """Our planner with (folder or file, strength) pairs."""
    read = [(read_planner_lora(path, base.config), strength) for path, strength in pairs]
    planner = apply_loras(copy.deepcopy(base.ours), by_layer(read))
    assert not fused or planner.fuse()
    return planner


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_transformers_with_peft(base, adapters, kind):
    model = pytest.importorskip("peft").PeftModel.from_pretrained(copy.deepcopy(base.theirs), adapters / kind)
    plain = with_loras(base, (adapters / kind, 1.0), fused=False)
    tokens = planned(plain, base.batch)
    assert torch.equal(tokens, reference_tokens(model.eval(), base.inputs, tokens.shape[1]))
    assert plain.fuse() and torch.equal(planned(plain, base.batch), tokens)
    assert not torch.equal(tokens, planned(base.ours, base.batch))


def test_two_files_at_once_equal_transformers_with_peft(base, adapters):
    model = pytest.importorskip("peft").PeftModel.from_pretrained(copy.deepcopy(base.theirs), adapters / "every", "a")
    model.load_adapter(adapters / "second", "b")
    model.base_model.set_adapter(["a", "b"])
    pairs = (adapters / "every", 1.0), (adapters / "second", 1.0)
    tokens = planned(with_loras(base, *pairs), base.batch)
    assert torch.equal(tokens, reference_tokens(model.eval(), base.inputs, tokens.shape[1]))
    alone = [planned(with_loras(base, pair), base.batch) for pair in pairs]
    assert not any(torch.equal(tokens, other) for other in alone)
    assert torch.equal(tokens, planned(with_loras(base, *reversed(pairs)), base.batch))


def random_lora(out: int, width: int, dora: bool = False, seed: int = 0) -> LayerLora:
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in ((out, 3), (3, width), (out,))
    ]
    return LayerLora(draws[0], draws[1], 0.7, draws[2].abs() if dora else None)


def test_a_strength_is_how_far_a_layer_goes_from_what_it_was_to_what_the_file_makes_of_it():
    """DoRA of several files too: each changes the layer's own weights, in any order and in pieces of any size."""
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(9))
    one, two = random_lora(6, 8), random_lora(6, 8, dora=True, seed=1)
    first = weight + one.scale * one.up @ one.down
    second = weight + two.scale * two.up @ two.down
    second *= two.magnitude[:, None] / second.norm(dim=1, keepdim=True)
    wanted = weight + 0.3 * (first - weight) - 0.5 * (second - weight)
    pairs = [(one, 0.3), (two, -0.5)]
    assert_close(change_weight(weight.clone(), pairs), wanted)
    assert_close(change_weight(weight.clone(), pairs[::-1]), wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loras, "CHUNK", 20)
        assert_close(change_weight(weight.clone(), pairs), wanted)
    half = change_weight(weight.to(torch.bfloat16), pairs)
    assert half.dtype == torch.bfloat16 and (half - wanted).abs().max() < 0.1


@pytest.mark.parametrize("form", ["w8", "w4"])
@pytest.mark.parametrize("kind", ["every", "dora", "bias", "all biases"])
def test_layers_of_8_and_4_bits_change_as_much_as_the_numbers_that_they_stand_for(base, adapters, form, kind):
    pairs = [(read_planner_lora(adapters / kind, base.config), 0.8)]
    coded = round_layers(copy.deepcopy(base.ours), form)
    whole, codes = copy.deepcopy(base.ours), {n: m for n, m in coded.named_modules() if isinstance(m, CodedLinear)}
    with torch.no_grad():
        for name, layer in codes.items():
            whole.get_submodule(name).weight.copy_(layer.numbers(slice(None)))
    before = {name: layer.weight.clone() for name, layer in codes.items()}
    apply_loras(whole, by_layer(pairs))
    tokens = planned(apply_loras(coded, by_layer(pairs)), base.batch)
    assert torch.equal(tokens, planned(whole, base.batch))
    streamed = offload_layers(coded, torch.device("cpu"))
    assert torch.equal(tokens, planned(streamed, base.batch))
    assert all(torch.equal(layer.weight, before[name]) for name, layer in codes.items())


def test_a_change_smaller_than_a_step_of_8_bits_is_kept():
    layer = nn.Module()
    layer.lm_head = nn.Linear(64, 8, bias=False).requires_grad_(False)
    small = round_layers(layer, "w8").lm_head
    assert isinstance(small, W8Linear)
    lora = LayerLora(torch.full((8, 1), 1e-5), torch.ones(1, 64))
    x = torch.ones(1, 64)
    before = small(x)
    apply_loras(layer, {"lm_head": [(lora, 1.0)]})
    assert small.lora_gain is None
    assert_close(small(x) - before, torch.full((1, 8), 64e-5), atol=2e-6, rtol=0)


SPELLINGS = {
    "transformers": "model.language_model.{}",
    "peft": "base_model.model.model.language_model.{}",
    "peft of the language model": "base_model.model.{}",
    "its own name": "language_model.{}",
    "the component's": "vision_language_encoder.model.language_model.{}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("infix", ["", ".default"])
def test_layers_are_found_under_every_trainers_names(base, tmp_path, spelling, infix):
    name = SPELLINGS[spelling].format("layers.1.self_attn.q_proj")
    state = {f"{name}.lora_A{infix}.weight": torch.ones(2, 128), f"{name}.lora_B{infix}.weight": torch.ones(128, 2)}
    save_file(state, tmp_path / "lora.safetensors")
    found = read_planner_lora(tmp_path / "lora.safetensors", base.config)
    assert list(found.layers) == ["model.language_model.layers.1.self_attn.q_proj"]
    assert found.layers[next(iter(found.layers))].scale == 1.0 and not found.says_scale


def test_settings_in_the_header_count_as_those_beside_the_file(base, adapters, tmp_path):
    folder = adapters / "patterns"
    settings = json.loads((folder / "adapter_config.json").read_text())
    header = {"vision_language_encoder." + key: value for key, value in settings.items()}
    file = tmp_path / "patterns.safetensors"
    save_file(load_file(folder / "adapter_model.safetensors"), file, {"lora_adapter_metadata": json.dumps(header)})
    one, other = (read_planner_lora(path, base.config) for path in (file, folder))
    assert {name: lora.scale for name, lora in one.layers.items()} == {
        n: lora.scale for n, lora in other.layers.items()
    }
    assert len({lora.scale for lora in one.layers.values()}) > 3
    assert one.sha256 != other.sha256  # the settings count


LAYER = "model.language_model.layers.0.self_attn.q_proj"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(2, 128), f"{LAYER}.lora_B.weight": torch.ones(128, 2)}
DECODERS = {
    "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 8),
    "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.ones(2, 8),
    "diffusion_model.transformer_blocks.0.attn1.to_q.diff": torch.ones(2, 8),
}
REFUSED = {
    "no tensors": ({}, {}, "holds no tensors"),
    **{
        f"decoder {i}": ({key: value}, {}, "is made for the decoder") for i, (key, value) in enumerate(DECODERS.items())
    },
    "another model": ({"text_model.encoder.q.lora_A.weight": torch.ones(2, 2)}, {}, "no linear layer of this planner"),
    "another kind": ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, {}, "only LoRA of linear layers is read"),
    "embedding": ({"model.language_model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}, {}, "only LoRA of linear"),
    "whole weights": ({f"{LAYER}.weight": torch.ones(2, 2)}, {}, "only LoRA of linear layers is read"),
    "a bias elsewhere": ({"model.visual.blocks.0.norm1.bias": torch.ones(4)}, {}, "besides LoRA"),
    "half": ({f"{LAYER}.lora_A.weight": torch.ones(2, 128)}, {}, "holds half of"),
    "twice": (PAIR | {f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 128)}, {}, "twice"),
    "width": (PAIR | {f"{LAYER}.lora_A.weight": torch.ones(2, 64)}, {}, "another planner"),
    "rank": (PAIR | {f"{LAYER}.lora_B.weight": torch.ones(128, 3)}, {}, "another planner"),
    "shape": (PAIR | {f"{LAYER}.lora_A.weight": torch.ones(2, 128, 1)}, {}, "another planner"),
    "no shape": (PAIR | {f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, {}, "another planner"),
    "magnitude": (PAIR | {f"{LAYER}.lora_magnitude_vector": torch.ones(3)}, {}, "magnitude"),
    "whole numbers": (PAIR | {f"{LAYER}.lora_A.weight": torch.ones(2, 128, dtype=torch.int32)}, {}, "floating-point"),
    "NaN": (PAIR | {f"{LAYER}.lora_A.weight": torch.full((2, 128), torch.nan)}, {}, "NaN or infinite"),
    "infinity": (PAIR | {f"{LAYER}.lora_A.weight": torch.full((2, 128), torch.inf)}, {}, "NaN or infinite"),
    "said rank": (PAIR, {"r": 4, "lora_alpha": 8}, "has rank 2 in .* and 4 by its settings"),
    "patterns' rank": (PAIR, {"r": 2, "rank_pattern": {"q_proj": 9}}, "has rank 2 in .* and 9"),
    "kind": (PAIR, {"peft_type": "LOHA"}, "of the kind 'LOHA'"),
    "beginning": (PAIR, {"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
    "unread": (PAIR, {"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    "alpha": (PAIR, {"lora_alpha": "much"}, "is no number"),
    "r": (PAIR, {"r": 0}, "is no number"),
    "infinite alpha": (PAIR, {"lora_alpha": float("inf")}, "is no number"),
    "patterns": (PAIR, {"alpha_pattern": [3]}, "should map layers to numbers"),
    "expression": (PAIR, {"alpha_pattern": {"(": 3}}, "no regular expression"),
    "settings": (PAIR, [1, 2], "no JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_do_not_fit_are_refused_in_a_sentence(base, tmp_path, case):
    state, settings, message = REFUSED[case]
    file = tmp_path / "bad.safetensors"
    save_file(state, file, {"lora_adapter_metadata": json.dumps(settings)} if settings else None)
    with pytest.raises(InputError, match=message) as error:
        read_planner_lora(file, base.config)
    assert str(error.value).startswith("planner LoRA 'bad.safetensors' ") and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 7, 100, 2000])
def test_a_file_cut_off_is_refused(base, adapters, tmp_path, size):
    data = (adapters / "plain" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:size])
    with pytest.raises(GlmImageError, match="cut.safetensors"):
        read_planner_lora(tmp_path / "cut.safetensors", base.config)


@pytest.mark.parametrize("name", ["nothing.safetensors", "adapter_model.bin", "", "no\0name"])
def test_what_is_no_file_of_tensors_is_refused(base, tmp_path, name):
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="planner LoRA"):
        read_planner_lora(tmp_path / name, base.config)


@pytest.fixture(scope="module")
def small_lora(tmp_path_factory):
    """A file for the bundled checkpoint's planner."""
    file = tmp_path_factory.mktemp("small") / "some.safetensors"
    weights = BUNDLED / "vision_language_encoder" / "model.safetensors"
    generator, state = torch.Generator().manual_seed(0), {}
    with safe_open(weights, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - a handle, not a dict
            if ".self_attn.o_proj.weight" in key:
                out, width = opened.get_slice(key).get_shape()
                name = key.removesuffix(".weight")
                state[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=generator)
                state[f"{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    save_file(state, file)
    return file


def small_plan(model) -> Plan:
    return model.plan('a blue poster that says "HELLO" in white', 96, 192, seed=3)


def test_a_model_takes_loras_and_gives_them_back(small_lora, tmp_path):
    """Weights are the checkpoint's again to the last bit, strength 0 changes none, and plans say what made them."""
    model = GlmImage.from_pretrained("small", device="cpu")
    before = small_plan(model)
    weights = {name: tensor.clone() for name, tensor in model.planner.state_dict().items()}
    model.use_planner_loras((small_lora, 0))
    assert torch.equal(small_plan(model).prior_token_ids_d32, before.prior_token_ids_d32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.planner.state_dict().items())
    model.use_planner_loras(small_lora, (str(small_lora), 0.5))
    changed = small_plan(model)
    assert not torch.equal(changed.prior_token_ids_d32, before.prior_token_ids_d32)
    assert [(lora.name, lora.strength) for lora in changed.planner_loras] == [("some.safetensors", s) for s in (1, 0.5)]
    changed.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").planner_loras == changed.planner_loras
    model.use_planner_loras()
    again = small_plan(model)
    assert torch.equal(again.prior_token_ids_d32, before.prior_token_ids_d32) and again.planner_loras == ()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.planner.state_dict().items())


def test_a_wrong_lora_is_refused_before_the_planner_is_read(tmp_path):
    save_file(DECODERS, tmp_path / "decoder.safetensors")
    with pytest.raises(InputError, match="made for the decoder"):
        GlmImage.from_pretrained("small", device="cpu", planner_loras=[tmp_path / "decoder.safetensors"])
    model = GlmImage.from_pretrained("small", device="cpu")
    for strength in (float("nan"), "much", True):
        with pytest.raises(InputError, match="strength"):
            model.use_planner_loras((tmp_path / "decoder.safetensors", strength))
    assert not model.components.loaded
