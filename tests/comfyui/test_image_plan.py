"""Plan from Image on a real server: image to image and inpainting with a plan that agrees with the image."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.tests.comfyui.graphs import change, node, sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of, plan_of
from PIL import Image


@pytest.fixture(scope="module")
def photo(server):
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (75, 110, 3), dtype=np.uint8))
    image.save(server.base / "input" / "photo.png")
    return image


def from_image(model: str, denoise: float = 0.5, **changes):
    """A photo whose sides are no multiples of 32, its plan, its latent, and a sampling that keeps some of it."""
    graph = saving_latent(text_to_image(model))
    graph["photo"] = node("LoadImage", image="photo.png")
    graph["plan"] = node(
        "GLMImagePlanFromImage", planner=["load", 0], image=["photo", 0], prompt='"OPEN"', megapixels=0.0
    )
    graph["latent"] = node("VAEEncode", pixels=["plan", 1], vae=["load", 3])
    graph["sample"] = sampler(steps=6, denoise=denoise)
    return change(graph, **changes)


def test_a_photo_of_any_size_is_fitted_and_its_plan_agrees(server, random_model, pipeline, photo):
    outputs = server.run(from_image(random_model))
    plan = plan_of(server, outputs)
    assert plan.grid == (2, 3)
    assert torch.equal(plan.prior_token_ids_d32, pipeline.plan_of_image(photo).prior_token_ids_d32)
    assert latent_of(server, outputs).shape[-2:] == (8, 12)
    assert outputs["text"]["text"] == ["texts: OPEN"]


def test_megapixels_scale_the_plan(server, random_model, photo):
    graph = from_image(random_model, plan_megapixels=0.02)
    assert plan_of(server, server.run(graph)).grid == (4, 5)


def test_outside_a_mask_the_latent_stays(server, random_model, photo):
    graph = from_image(random_model, denoise=1.0)
    graph["mask"] = node("SolidMask", value=0.0, width=110, height=75)
    graph["spot"] = node("SolidMask", value=1.0, width=40, height=75)
    paste = {"destination": ["mask", 0], "source": ["spot", 0], "x": 0, "y": 0, "operation": "add"}
    graph["half"] = node("MaskComposite", **paste)
    graph["noised"] = node("SetLatentNoiseMask", samples=["latent", 0], mask=["plan", 2])
    graph["start"] = node("SaveLatent", samples=["latent", 0], filename_prefix="start")
    graph = change(graph, plan_mask=["half", 0], sample_latent_image=["noised", 0])
    outputs = server.run(graph)
    start, found = latent_of(server, outputs, "start"), latent_of(server, outputs)
    assert difference(found[..., 6:], start[..., 6:]) < 1e-3
    assert difference(found[..., :3], start[..., :3]) > 0.05
