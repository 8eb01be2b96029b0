"""Weights from single files, and in small dtypes."""

import shutil

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER, PLANNER, resolve
from comfyui_glm_image.pipeline.loading.placement import PlacementRequest, choose
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.pipeline.loading.quantize_files import FileQuantization, quantize_to_files
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image, with_file
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of, plan_of
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


@pytest.mark.parametrize(("form", "most"), [("w8", 0.05), ("w4", 0.6)])
def test_the_decoder_is_rounded_to_8_and_4_bits_at_its_loader(server, random_model, form, most):
    graph = saving_latent(text_to_image(random_model, sample_steps=4), plan=False)
    exact = latent_of(server, server.run(graph))
    found = latent_of(server, server.run(change(graph, load_decoder_dtype=form)))
    assert torch.isfinite(found).all()
    assert 1e-6 < (found - exact).abs().mean() / exact.abs().mean() < most


def test_the_planner_is_rounded_as_the_pipeline_rounds_it(server, random_model, random_folder):
    exact = {"load_planner_dtype": "w8", "load_decoder_dtype": "fp32"}
    plan = plan_of(server, server.run(saving_latent(text_to_image(random_model, **exact))))
    placement = choose(random_folder, PlacementRequest("cpu", "fp32", planner_weights="w8"))
    pipeline = GlmImage.from_pretrained(random_folder, placement=placement)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan.prior_token_ids_d32, wanted.prior_token_ids_d32)


def test_the_planner_comes_from_one_file(server, random_model, random_folder):
    """In models/text_encoders; and a graph of before, which has no such input, still runs (test_graphs.py)."""
    folder = server.base / "models" / "text_encoders"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(random_folder / "vision_language_encoder" / "model.safetensors", folder / "planner.safetensors")
    shutil.copy(random_folder / "transformer" / "diffusion_pytorch_model.safetensors", folder / "decoder.safetensors")
    graph = saving_latent(text_to_image(random_model))
    wanted = plan_of(server, server.run(graph))
    planner = node(
        "GLMImagePlannerLoader", model=random_model, dtype="auto", device="auto", weights="planner.safetensors"
    )
    graph = change(graph | {"planner": planner}, plan_planner=["planner", 0])
    found = plan_of(server, server.run(graph))
    assert torch.equal(found.prior_token_ids_d32, wanted.prior_token_ids_d32)
    with pytest.raises(PromptError, match="decoder.safetensors holds the weights of a decoder"):
        server.run(change(graph, planner_weights="decoder.safetensors"))


def test_single_files_of_quantize_are_read_as_they_are(server, random_model, random_folder):
    """What `glm-image quantize --single-files` writes into ComfyUI's models, against rounding while loading."""
    forms = {PLANNER: "w8", DECODER: "w4"}
    planner, decoder = quantize_to_files(FileQuantization(resolve(random_folder), server.base / "models", forms))
    graph = saving_latent(text_to_image(random_model, sample_steps=4))
    rounded = server.run(change(graph, load_planner_dtype="w8", load_decoder_dtype="w4"))
    graph = with_file(graph, decoder.name)
    loader = node("GLMImagePlannerLoader", model=random_model, dtype="auto", device="auto", weights=planner.name)
    read = server.run(change(graph | {"planner": loader}, plan_planner=["planner", 0]))
    assert torch.equal(*(plan_of(server, run).prior_token_ids_d32 for run in (rounded, read)))
    found, wanted = (latent_of(server, run) for run in (read, rounded))
    assert torch.allclose(found, wanted, atol=1e-4)  # where mapped memory begins decides the order of sums


def test_a_gguf_file_is_offered_and_read_where_its_package_is(server, random_model, random_folder):
    gguf = pytest.importorskip("gguf")
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "whole.gguf", "glm_image")
    for key, tensor in load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors").items():
        writer.add_tensor(key, tensor.float().numpy())
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    graph = saving_latent(text_to_image(random_model, sample_steps=4), plan=False)
    exact = latent_of(server, server.run(graph))
    try:
        found = latent_of(server, server.run(with_file(graph, "whole.gguf")))
    except PromptError as error:
        assert error.node == "decoder" and "run 'pip install -U gguf'" in error.text  # ComfyUI's Python lacks it
    else:
        assert torch.allclose(found, exact, atol=1e-4)


def test_weights_that_are_rounded_otherwise_are_refused_at_the_loader(server, random_folder, tmp_path):
    folder = quantize(Quantization(resolve(random_folder), tmp_path / "w8", {DECODER: "w8"}))
    server.add_model("rounded", folder)
    graph = saving_latent(text_to_image("rounded/model_index.json", sample_steps=2), plan=False)
    assert torch.isfinite(latent_of(server, server.run(graph))).all()
    with pytest.raises(PromptError, match="rounded to w8 already, not to w4; choose auto or w8"):
        server.run(change(graph, load_decoder_dtype="w4"))


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
