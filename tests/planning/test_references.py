"""Reference image sizes and pixels against transformers' image processor."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.models.config import ProcessorConfig
from comfyui_glm_image.pipeline.planning.references import prepare_reference, reference_grid
from PIL import Image
from torch.testing import assert_close


@pytest.fixture(scope="module")
def processor(references):
    folder, pipeline = references("plain")
    return ProcessorConfig.from_folder(folder / "processor"), pipeline.processor.image_processor


def picture(width, height, mode="RGB"):
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(), mode)


def test_grids_equal_the_processors_rule_for_every_kind_of_size(processor):
    smart_resize = pytest.importorskip("transformers.models.glm_image.image_processing_pil_glm_image").smart_resize
    ours, _ = processor
    sides = [16, 17, 31, 33, 63, 64, 100, 111, 112, 113, 500, 512, 1000, 1023, 1500, 2048, 3104, 4000, 9000]
    for height in sides:
        for width in sides:
            if max(height, width) > 4 * min(height, width):
                continue
            wanted = smart_resize(height, width, 16, ours.min_pixels, ours.max_pixels)
            assert tuple(16 * side for side in reference_grid(height, width, ours)) == wanted


@pytest.mark.parametrize("size", [(160, 128), (100, 77), (40, 90), (700, 300)])
def test_vit_pixels_equal_the_processors(processor, size):
    ours, theirs = processor
    image = picture(*size)
    ready = prepare_reference(image, ours)
    wanted = theirs(image, return_tensors="pt")
    h, w = ready.grid
    assert wanted["image_grid_thw"].tolist() == [[1, h, w]]
    patches = ready.vit_pixels.unflatten(2, (w, 16)).unflatten(1, (h, 16)).permute(1, 3, 0, 2, 4)
    assert_close(patches.reshape(h * w, -1), wanted["pixel_values"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (15, 15), (33, 100), (101, 57), (640, 480), (4000, 1000), (3200, 3200)])
def test_both_encoders_see_sizes_that_agree(processor, size):
    ready = prepare_reference(Image.new("RGB", size), processor[0])
    h, w = ready.grid
    assert ready.pixels.shape == (32 * h, 32 * w, 3) and ready.pixels.dtype == torch.uint8
    assert ready.vit_pixels.shape == (3, 16 * h, 16 * w)


def test_an_image_of_whole_tokens_reaches_the_vae_unchanged(processor):
    image = picture(160, 128)
    assert np.array_equal(prepare_reference(image, processor[0]).pixels.numpy(), np.asarray(image))


@pytest.mark.parametrize("size", [(401, 100), (10, 1000)])
def test_aspect_ratios_over_four_are_refused(processor, size):
    with pytest.raises(InputError, match=r"at most 4:1 is accepted; crop it"):
        prepare_reference(Image.new("RGB", size), processor[0])


def test_other_types_are_refused(processor):
    with pytest.raises(InputError, match="must be a PIL image, got ndarray"):
        prepare_reference(np.zeros((8, 8, 3)), processor[0])
