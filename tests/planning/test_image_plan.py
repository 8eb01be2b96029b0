"""An image read as a plan: sizes, tokens, and refusals."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.glm_image import GlmImage
from comfyui_glm_image.pipeline.planning.image_plan import fitted, plan_of_images
from PIL import Image


@pytest.fixture(scope="module")
def model(references):
    return GlmImage.from_pretrained(references("plain")[0], device="cpu")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "pixels", "wanted"),
    [
        ((64, 96), None, (64, 96)),
        ((70, 100), None, (64, 96)),
        ((300, 400), 96 * 128, (96, 128)),
        ((5, 9), None, (32, 32)),
    ],
)
def test_an_image_is_fitted_to_the_grid(size, pixels, wanted):
    image = fitted(noise(*size), pixels)
    assert (image.height, image.width) == wanted


def test_fitting_keeps_the_shape_and_cuts_both_sides():
    image = Image.new("RGB", (110, 64), "red")  # 14 px too wide: 7 go on each side
    image.paste((0, 0, 255), (0, 0, 7, 64))
    image.paste((0, 0, 255), (103, 0, 110, 64))
    assert np.array_equal(np.asarray(fitted(image)), np.asarray(Image.new("RGB", (96, 64), "red")))


def test_tokens_are_those_of_a_reference_image(model):
    image = noise(128, 160)  # smaller references are enlarged
    plan = model.plan_of_image(image, "a sign that says 'OPEN'")
    planned = model.plan("an edit", 64, 96, [image])
    assert torch.equal(plan.prior_token_ids_d32[0], planned.references[0].prior_token_ids_d32)
    assert plan.grid == planned.references[0].grid == (4, 5) and plan.prompts == ["a sign that says 'OPEN'"]
    assert torch.isfinite(model.denoise(plan, 2, 1.5, 0)).all()


def test_images_of_a_batch_are_rows(model):
    images = [noise(64, 96, seed) for seed in range(3)]
    processor = model.settings.processor
    plan = plan_of_images(model.planner, images, "", processor)
    assert len(plan) == 3
    for row, image in zip(plan.prior_token_ids_d32, images):
        assert torch.equal(row, plan_of_images(model.planner, [image], "", processor).prior_token_ids_d32[0])


def test_what_is_no_image_and_images_of_two_sizes_are_refused(model):
    with pytest.raises(InputError, match="PIL image, got ndarray"):
        fitted(np.zeros((8, 8, 3)))
    with pytest.raises(InputError, match="longer than 16:1"):
        fitted(noise(32, 32 * 17))
    with pytest.raises(InputError, match="one size, got 2 sizes"):
        plan_of_images(model.planner, [noise(32, 32), noise(32, 64)], "", model.settings.processor)
