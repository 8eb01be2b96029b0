"""The vision tokenizer against transformers: features, tokens, several references."""

import pytest
import torch
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models import vision_tokenizer as vision
from comfyui_glm_image.pipeline.models.config import ProcessorConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.planning.references import prepare_reference
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


@torch.no_grad()
def test_a_codebook_entrys_length_does_not_matter(pair):
    quantize = vision.VectorQuantizer(pair[0].config.vq_config)
    entries = len(quantize.embedding.weight)
    quantize.embedding.weight[0] = 0
    looked_for = quantize.embedding.weight[[3, 1, entries - 1]] * torch.tensor([[2.0], [0.1], [30.0]])
    quantize.embedding.weight *= torch.linspace(0.01, 100, entries)[:, None]
    assert quantize(looked_for).tolist() == [3, 1, entries - 1]


@torch.no_grad()
def test_a_layer_that_brings_its_weights_is_called_for_them():
    """As ComfyUI's layers are, whose own weight may lie elsewhere or be packed."""

    class Bringing(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    plain, bringing = torch.nn.Embedding(6, 4), Bringing(6, 4)
    assert vision.all_rows(plain, plain.weight.device) is plain.weight
    assert_close(vision.all_rows(bringing, bringing.weight.device), bringing.weight + 1)
