"""LoRA on the decoder: keys of every trainer, strengths, and what fits nothing."""

import pytest
import torch
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image, with_file
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYERS = (
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.attn1.to_out.0",
)
FORMS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", "."),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", "."),
    "comfyui": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", "."),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "_"),
}


def adapter(folder, form: str, more=()) -> dict[str, torch.Tensor]:
    """A rank-2 adapter for three layers of the decoder in `folder`, under one trainer's keys."""
    down, up, joint = FORMS[form]
    state = {}
    with safe_open(folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        for i, layer in enumerate(LAYERS):
            rows, columns = file.get_slice(f"{layer}.weight").get_shape()
            generator = torch.Generator().manual_seed(i)
            name = layer.replace(".", joint)
            state[down.format(name)] = 0.3 * torch.randn(2, columns, generator=generator)
            state[up.format(name)] = 0.3 * torch.randn(rows, 2, generator=generator)
    return state | {key: torch.zeros(2, 2) for key in more}


def with_lora(graph, name: str, strength: float = 1.0):
    graph = graph | {"lora": node("GLMImageLoRA", model=["load", 1], lora=name, strength=strength)}
    return change(graph, sample_model=["lora", 0])


@pytest.fixture(scope="module")
def loras(server, random_folder):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        save_file(adapter(random_folder, form), folder / f"{form}.safetensors")
    save_file(adapter(random_folder, "peft", ["transformer.layers.9.lora_A.weight"]), folder / "extra.safetensors")
    save_file({"unet.down.weight": torch.zeros(2, 2)}, folder / "foreign.safetensors")
    return folder


def test_every_trainers_keys_give_the_same_picture(server, random_model, random_folder, loras):
    graph = saving_latent(text_to_image(random_model), plan=False)
    plain = latent_of(server, server.run(graph))
    found = [latent_of(server, server.run(with_lora(graph, f"{form}.safetensors"))) for form in FORMS]
    assert difference(found[0], plain) > 0.01
    for other in found[1:]:
        assert torch.equal(other, found[0])
    off = latent_of(server, server.run(with_lora(graph, "peft.safetensors", 0.0)))
    assert torch.equal(off, plain)


def test_an_adapter_adds_what_it_says(server, random_model, random_folder, loras, tmp_path):
    """The same picture from a checkpoint whose weights have the adapter merged in."""
    merged = load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    state = adapter(random_folder, "peft")
    for layer in LAYERS:
        down, up = (state[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        merged[f"{layer}.weight"] += 0.7 * up @ down
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(merged, folder / "merged.safetensors")
    graph = saving_latent(text_to_image(random_model), plan=False)
    patched = latent_of(server, server.run(with_lora(graph, "diffusers.safetensors", 0.7)))
    assert difference(latent_of(server, server.run(with_file(graph, "merged.safetensors"))), patched) < 1e-3


def test_keys_that_fit_nothing_are_listed_and_a_foreign_file_refused(server, random_model, loras):
    graph = saving_latent(text_to_image(random_model), plan=False)
    text = server.run(with_lora(graph, "extra.safetensors"))["lora"]["text"][0]
    assert text == "extra.safetensors: 1 of 7 keys fit no layer of GLM-Image: transformer.layers.9.lora_A.weight"
    with pytest.raises(PromptError, match="foreign.safetensors holds nothing for the GLM-Image decoder") as error:
        server.run(with_lora(graph, "foreign.safetensors"))
    assert error.value.node == "lora"
