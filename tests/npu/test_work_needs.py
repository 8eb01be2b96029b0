"""Estimates of each stage's work against what torch_npu's allocator counts, on modules of a fraction of the release's
widths: at least as much, and at most a quarter and a block more.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from comfyui_glm_image.pipeline.denoising.approximations import Approximations
from comfyui_glm_image.pipeline.denoising.cfg import CfgPasses, guided_velocity
from comfyui_glm_image.pipeline.devices import kernel_memory, kernels, npu_kernels
from comfyui_glm_image.pipeline.devices.capabilities import ASCEND
from comfyui_glm_image.pipeline.loading import work_needs as W
from comfyui_glm_image.pipeline.models import released, tiny
from comfyui_glm_image.pipeline.models.transformer import Dit
from comfyui_glm_image.pipeline.models.transformer_context import ReferenceCache
from comfyui_glm_image.pipeline.models.vae import Vae
from comfyui_glm_image.pipeline.models.vision_tokenizer import VisionModel, VQModel

DIT = replace(released.DIT, num_layers=3, num_attention_heads=4, attention_head_dim=64, text_embed_dim=64)
VAE = replace(released.VAE, block_out_channels=(32, 128, 128, 128), layers_per_block=1, norm_num_groups=8)
SIDE = 256
LARGER = 1.25
BLOCK = 1 << 20  # bytes by which a block may be larger than what was asked for


@contextlib.contextmanager
def peak(device):
    """`found.bytes`: the most that the block asked for beyond what was there before.

    What it got can be more, by what others left: the allocator gives out a free block of up to 1 MB more whole.
    """
    found = type("Peak", (), {})
    torch.npu.reset_peak_memory_stats(device)
    before = torch.npu.memory_stats(device)["requested_bytes.all.current"]
    yield found
    found.bytes = torch.npu.memory_stats(device)["requested_bytes.all.peak"] - before


@pytest.fixture(params=["A2", "310P"])
def chip(request, npu, monkeypatch):
    """Kernels of a chip; those of 310P have no bfloat16, and bound the memory of scores, here to a small amount."""
    monkeypatch.setattr(kernel_memory, "capabilities", lambda _: ASCEND[request.param])
    monkeypatch.setattr(kernel_memory, "SCORES", 1 << 22)
    kernels.register_kernels("npu", **(npu_kernels.FUSED if request.param == "A2" else npu_kernels.FALLBACKS))
    yield request.param
    kernels.register_kernels("npu", **npu_kernels.implementations())


def module(build, config, npu):
    torch.manual_seed(0)
    return build(config, dtype=torch.float16).to(npu).requires_grad_(False)


def covered(used, estimated):
    return used <= estimated <= LARGER * used + BLOCK


@pytest.mark.parametrize(
    ("count", "batched", "references", "step_cache"),
    [(1, False, 0, False), (2, True, 0, False), (1, True, 1, False), (2, False, 2, False), (1, False, 0, True)],
)
@torch.no_grad()
def test_a_pass_of_the_decoder(chip, npu, count, batched, references, step_cache):
    dit, grid = module(Dit, DIT, npu), (SIDE // 16, SIDE // 16)
    tokens, half = grid[0] * grid[1], {"dtype": torch.float16, "device": npu}
    caches = Approximations(step_cache=0.1 if step_cache else None).caches()
    with peak(npu) as used:
        latents = torch.randn(count, 16, SIDE // 8, SIDE // 8).to(**half)
        ids = torch.zeros(count, tokens, dtype=torch.long, device=npu)
        read = [dit.encode_reference(latents[:1], ids[:1]) for _ in range(references)]
        about = {"references": ReferenceCache.join(read) if read else None, "repeats": 2}
        del read
        conditional = dit.prepare(torch.randn(count, W.GLYPH_TOKENS, 64).to(**half), ids, grid, **about)
        unconditional = dit.prepare(torch.randn(count, 1, 64).to(**half), ids, grid, prior_token_drop=True)
        passes = CfgPasses(conditional, unconditional, 1.5, batched=batched)
        del conditional, unconditional, about
        modulations = dit.modulations(torch.zeros(50).to(npu), *torch.zeros(2, 1, 2).to(npu), torch.float16)
        for step in (0, 1):
            guided_velocity(dit, latents * (1 - 2 * step), modulations[step], passes, caches)
    images = W.ImageBatch(SIDE, SIDE, count, ((8, 8),) * references, step_cache=step_cache)
    assert covered(used.bytes, W.decoder_work(DIT, torch.float16, images, batched, npu))


@torch.no_grad()
def test_decoding_pixels(npu):
    vae, images = module(Vae, VAE, npu), W.ImageBatch(SIDE, SIDE, 2)
    with peak(npu) as used:
        vae.decode_tiled(torch.randn(2, 16, SIDE // 8, SIDE // 8).half().to(npu))
    assert covered(used.bytes, W.vae_work(VAE, torch.float16, images))


@torch.no_grad()
def test_encoding_pixels(npu):
    config = replace(VAE, layers_per_block=2, block_out_channels=(64, 64, 64, 64))
    vae, images = module(Vae, config, npu), W.ImageBatch(references=((4, 6),))
    with peak(npu) as used:
        vae.encode(torch.zeros(1, 3, 128, 192).half().to(npu))
    assert covered(used.bytes, W.encoder_work(config, torch.float16, images))


@torch.no_grad()
def test_turning_a_reference_into_tokens(chip, npu):
    config = tiny.planner_config()
    vision = replace(config.vision_config, hidden_size=128, intermediate_size=512)
    config = replace(config, vision_config=vision, vq_config=replace(config.vq_config, latent_channels=128))
    visual, codebook = module(VisionModel, vision, npu), module(VQModel, config.vq_config, npu)
    with peak(npu) as used:
        codebook(visual(torch.zeros(3, 512, 512).half().to(npu)))
    images = W.ImageBatch(SIDE, SIDE, references=((32, 32),))
    assert covered(used.bytes, W.vision_work(config, torch.float16, images, npu))
