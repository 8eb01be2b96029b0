"""LoRA files for the decoder: what peft merges, what stands beside codes, and what the estimate counts."""

import json

import pytest
import torch
from comfyui_glm_image.pipeline.glm_image import GlmImage
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER
from comfyui_glm_image.pipeline.loading.lora_files import TARGETS, read_lora
from comfyui_glm_image.pipeline.loading.placement import PlacementRequest, choose
from comfyui_glm_image.pipeline.models.lora import apply_loras
from comfyui_glm_image.pipeline.models.weight_forms import round_layers
from safetensors.torch import load_file, save_file

TARGET_LAYERS = ["to_q", "to_out.0", "ff.net.0.proj"]
KINDS = {
    "plain": {"lora_alpha": 16},
    "rslora": {"lora_alpha": 16, "use_rslora": True},
    "patterns": {"lora_alpha": 8, "alpha_pattern": {"ff.net.0.proj": 3}},
    "dora": {"lora_alpha": 6, "use_dora": True},
    "bias": {"lora_alpha": 12, "lora_bias": True},
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, references, tmp_path_factory):
    """An adapter's file as diffusers saves it, and the decoder's weights with peft's product in them."""
    peft, diffusers = pytest.importorskip("peft"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.GlmImageTransformer2DModel.from_pretrained(references("plain")[0] / "transformer")
    settings = {"target_modules": TARGET_LAYERS, "init_lora_weights": False, **KINDS[request.param]}
    transformer.add_adapter(peft.LoraConfig(r=4, **settings))
    folder = tmp_path_factory.mktemp("adapter")
    transformer.save_lora_adapter(folder, weight_name="look.safetensors")
    transformer.fuse_lora()
    merged = transformer.state_dict().items()
    return folder / "look.safetensors", {
        name.replace(".base_layer", ""): weight for name, weight in merged if "lora_" not in name
    }


@pytest.fixture(params=["plain", "dora"])
def made(request, references, tmp_path):
    """An adapter's file of rank 3 for some layers, with biases, made without peft."""
    generator, state = torch.Generator().manual_seed(1), {}
    weights = references("plain")[0] / "transformer" / "diffusion_pytorch_model.safetensors"
    for key, weight in load_file(weights).items():
        layer = key.removesuffix(".weight")
        if weight.ndim == 2 and layer.endswith(tuple(TARGET_LAYERS)):
            out, width = weight.shape
            name = f"transformer.{layer}"
            state[f"{name}.lora_A.weight"] = 0.3 * torch.randn(3, width, generator=generator)
            state[f"{name}.lora_B.weight"] = 0.3 * torch.randn(out, 3, generator=generator)
            state[f"{name}.lora_B.bias"] = 0.3 * torch.randn(out, generator=generator)
            if request.param == "dora":
                state[f"{name}.lora_magnitude_vector"] = 1 + torch.rand(out, generator=generator)
    settings = {"transformer.r": 3, "transformer.lora_alpha": 4}
    save_file(state, tmp_path / "look.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    return tmp_path / "look.safetensors"


@pytest.fixture
def model(references):
    return GlmImage.from_pretrained(references("plain")[0], device="cpu")


def test_weights_are_those_that_peft_merges(saved, model):
    path, wanted = saved
    before = {name: weight.clone() for name, weight in model.transformer.state_dict().items()}
    model.use_loras(path)
    found = model.transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < 1e-5
    model.use_loras((path, 0))
    assert all(torch.equal(weight, before[name]) for name, weight in model.transformer.state_dict().items())


def test_a_lora_stands_beside_codes(made, model):
    """Of each layer's numbers and the file, to float32's precision."""
    changes = {
        name: [(lora, 0.7)] for name, lora in read_lora(TARGETS[DECODER], made, model.configs[DECODER]).layers.items()
    }
    coded = round_layers(model.transformer, "w8")
    whole = {}
    for name in changes:
        layer = coded.get_submodule(name)
        whole[name] = torch.nn.Linear(*reversed(layer.shape)).requires_grad_(False)
        whole[name].weight.copy_(layer.numbers(slice(None)))
        whole[name].bias.copy_(layer.bias)
    apply_loras(coded, changes)
    for name, layer in whole.items():
        apply_loras(torch.nn.ModuleDict({"it": layer}), {"it": changes[name]})
        x = torch.randn(3, layer.in_features)
        found, wanted = coded.get_submodule(name)(x), layer(x)
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_an_image_with_8_bits_is_near_that_of_whole_weights(made, model, references):
    plan, drawn = model.plan("a cat", 64, 96, seed=3), []
    for form in ("full", "w8"):
        request = PlacementRequest("cpu", "fp32", decoder_weights=form)
        other = GlmImage.from_pretrained(references("plain")[0], placement=choose(references("plain")[0], request))
        for loras in ((), ((made, 0.3),)):
            other.use_loras(*loras)
            drawn.append(other.denoise(plan, 2, 1.5, 5))
    plain, with_lora, _, small = drawn
    assert (small - with_lora).abs().mean() < 0.2 * (with_lora - plain).abs().mean()
