"""The autoencoder against diffusers' on the same weights, and strips against the whole."""

import pytest
import torch
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import VaeConfig
from comfyui_glm_image.pipeline.models.vae import Vae, decode_nbytes
from torch.testing import assert_close

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def load(folder):
    folder = folder / "vae"
    return load_module(Vae, VaeConfig.from_json(folder / "config.json"), folder, "cpu", torch.float32)


@pytest.fixture(scope="module")
def pair(reference):
    folder, pipe = reference
    return load(folder), pipe.vae


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_encode_is_the_mode_of_diffusers_distribution(pair):
    ours, theirs = pair
    pixels = draw(2, 3, 64, 96).clamp(-1, 1)
    with torch.no_grad():
        assert_close(ours.encode(pixels), theirs.encode(pixels).latent_dist.mode(), **CLOSE)


def test_decode_equals_diffusers(pair):
    ours, theirs = pair
    latents = draw(2, 16, 6, 10)
    with torch.no_grad():
        assert_close(ours.decode(latents), theirs.decode(latents, return_dict=False)[0], **CLOSE)


def test_normalise_is_undone(pair):
    ours, theirs = pair
    latents = draw(1, 16, 4, 4)
    mean = torch.tensor(theirs.config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(theirs.config.latents_std).view(1, -1, 1, 1)
    assert_close(ours.normalise(latents), (latents - mean) / std)
    assert_close(ours.denormalise(ours.normalise(latents)), latents)


@pytest.mark.parametrize("rows", [1, 7, 16, 500])
def test_strips_make_the_whole_decodes_picture(references, rows):
    """The tolerance of tiled decoding: rounding."""
    vae, latents = load(references("deep")[0]), draw(2, 16, 5, 7)
    with torch.no_grad():
        assert_close(vae.decode_tiled(latents, rows), vae.decode(latents), rtol=1e-4, atol=1e-5)


def test_strips_in_half_precision_follow_the_whole_decode(references):
    vae, latents = load(references("plain")[0]).bfloat16(), draw(1, 16, 6, 6).bfloat16()
    with torch.no_grad():
        whole, tiled = vae.decode(latents).float(), vae.decode_tiled(latents, 8).float()
    assert (tiled - whole).abs().mean() < 0.02 * whole.std()


def test_strips_never_hold_an_upsampled_activation(references):
    """The largest tensor that a layer makes is a strip of the widest level."""
    vae, largest = load(references("plain")[0]), []
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _input, out: largest.append(out.numel()))
    with torch.no_grad():
        vae.decode_tiled(draw(1, 16, 16, 16), rows=8)
    assert max(largest) <= 128 * 128 * 16 / 8  # an eighth of the widest level: 8 rows with their borders, of 128


def test_memory_grows_with_pixels_and_width(references):
    config = load(references("plain")[0]).config
    small, large = (decode_nbytes(config, side, side, torch.bfloat16) for side in (512, 1024))
    assert large == 4 * small
    assert decode_nbytes(config, 512, 512, torch.float32) == 2 * small
