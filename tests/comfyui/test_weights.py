"""Weights from single files, and in small dtypes."""

import pytest
import torch
from comfyui_glm_image.tests.comfyui.graphs import saving_latent, text_to_image, with_file
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_small_weights_from_one_file_draw_a_similar_picture(server, random_model, random_folder, name):
    """fp8 is stored only: layers compute in the device's dtype."""
    state = load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    small = {f"model.diffusion_model.{key}": tensor.to(getattr(torch, name)) for key, tensor in state.items()}
    save_file(small, folder / f"{name}.safetensors")
    graph = saving_latent(text_to_image(random_model, sample_steps=4), plan=False)
    exact = latent_of(server, server.run(graph))
    found = latent_of(server, server.run(with_file(graph, f"{name}.safetensors")))
    assert torch.isfinite(found).all()
    assert 1e-5 < (found - exact).abs().mean() / exact.abs().mean() < {"bfloat16": 0.05}.get(name, 0.6)


def test_a_file_of_another_model_is_named(server, random_model, references):
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "wide.safetensors"
    if not link.exists():
        link.symlink_to(references("wide")[0] / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(PromptError, match="wide.safetensors") as error:
        server.run(with_file(saving_latent(text_to_image(random_model), plan=False), "wide.safetensors"))
    assert error.value.node == "decoder"
    assert "\n" not in error.value.text
