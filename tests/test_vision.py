"""The vision tokenizer against transformers: features, tokens, several references."""

import pytest
import torch
from comfyui_glm_image.pipeline import vision
from comfyui_glm_image.pipeline.checkpoint import load_module
from comfyui_glm_image.pipeline.config import ProcessorConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.images import prepare_reference
from comfyui_glm_image.pipeline.planner import Planner
from PIL import Image
from torch.testing import assert_close


@pytest.fixture(scope="module")
def pair(reference):
    folder, pipeline = reference
    path = folder / "vision_language_encoder"
    ours = load_module(Planner, VisionLanguageConfig.from_json(path / "config.json"), path, "cpu", torch.float32)
    return ours, pipeline, ProcessorConfig.from_folder(folder / "processor")


def pictures():
    """Sizes below, at and above the position tables' sides, odd grids among them."""
    gradient = [Image.radial_gradient("L"), Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90)]
    image = Image.merge("RGB", gradient)
    return [image.resize(size) for size in ((160, 128), (96, 224), (480, 512), (130, 300))]


@torch.no_grad()
def test_features_and_tokens_of_several_references_equal_transformers(pair):
    ours, pipeline, settings = pair
    theirs = pipeline.vision_language_encoder
    inputs = pipeline.processor.image_processor(pictures(), return_tensors="pt")
    features = theirs.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    tokens = theirs.get_image_tokens(features)
    ready = [prepare_reference(image, settings) for image in pictures()]
    for image, wanted in zip(ready, features):
        assert_close(ours.model.visual(image.vit_pixels)[0], wanted, atol=1e-4, rtol=1e-4)
    assert_close(torch.cat([ours.tokenize_image(image.vit_pixels) for image in ready]), tokens)


@torch.no_grad()
def test_tokens_tell_images_apart(pair):
    ours, _, settings = pair
    first, second = (ours.tokenize_image(prepare_reference(i, settings).vit_pixels) for i in pictures()[:2])
    assert len(first.unique()) > 1 and not torch.equal(first, second[: len(first)])


@torch.no_grad()
def test_searching_the_codebook_in_parts_changes_nothing(pair, monkeypatch):
    ours, _, settings = pair
    pixels = prepare_reference(pictures()[2], settings).vit_pixels
    whole = ours.tokenize_image(pixels)
    monkeypatch.setattr(vision, "SEARCH_ROWS", 7)
    assert_close(ours.tokenize_image(pixels), whole)
