"""What trades exactness for speed: off by default, near the full run when on, refused when it means nothing."""

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.denoising import cfg
from comfyui_glm_image.pipeline.denoising.approximations import EXACT, Approximations
from comfyui_glm_image.pipeline.denoising.cfg import CfgPasses
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.layout.layout_control import LayoutControl
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from PIL import Image
from torch.testing import assert_close

STEPS = 6


@pytest.fixture(scope="module")
def model(references):
    return GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(model):
    return model.plan("a 'HI' sign", 64, 96, temperature=0)


@pytest.fixture
def passes(model, monkeypatch):
    """Counts the decoder's passes and the blocks that ran."""
    counted = {"passes": 0, "blocks": 0}
    dit, step = model.transformer, model.transformer.step

    def counting(*args):
        counted["passes"] += 1
        return step(*args)

    monkeypatch.setattr(dit, "step", counting)
    hooks = [
        block.register_forward_hook(lambda *_: counted.update(blocks=counted["blocks"] + 1))
        for block in dit.transformer_blocks
    ]
    yield counted
    for hook in hooks:
        hook.remove()


def test_nothing_is_traded_by_default(model, plan, passes):
    assert Approximations() == EXACT
    model.denoise(plan, STEPS)
    assert passes == {"passes": 2 * STEPS, "blocks": 2 * STEPS * model.configs["transformer"].num_layers}


@pytest.mark.parametrize("interval, guided", [((0, 1), 6), ((0, 0.5), 3), ((0.5, 1), 3), ((0.3, 0.7), 2), ((0, 0), 0)])
def test_guidance_runs_in_its_interval_only(model, plan, passes, interval, guided):
    model.denoise(plan, STEPS, guidance_interval=interval)
    assert passes["passes"] == STEPS + guided


def test_the_whole_interval_is_the_full_run_and_none_of_it_no_guidance(model, plan):
    full, plain = model.denoise(plan, STEPS), model.denoise(plan, STEPS, guidance_scale=1.0)
    assert torch.equal(model.denoise(plan, STEPS, guidance_interval=(0, 1)), full)
    assert torch.equal(model.denoise(plan, STEPS, guidance_interval=(0, 0)), plain)
    half = model.denoise(plan, STEPS, guidance_interval=(0, 0.5))
    assert 0 < (half - full).norm() < (plain - full).norm()


def test_a_step_cache_runs_fewer_blocks_the_higher_its_threshold():
    """On the bundled checkpoint: random weights change too much from step to step."""
    model = GlmImage.from_pretrained(SMALL, device="cpu", dtype=torch.float32)
    plan = model.plan("a 'HI' sign", 64, 96, temperature=0)
    steps, runs, blocks = 12, [], []
    model.transformer.transformer_blocks[-1].register_forward_hook(lambda *_: blocks.append(1))
    full = model.denoise(plan, steps)
    for threshold in (1e-6, 0.15, 0.9):
        blocks.clear()
        difference = (model.denoise(plan, steps, step_cache=threshold) - full).norm()
        runs.append((len(blocks), difference))
    assert runs[0] == (2 * steps, 0)
    assert runs[0][0] > runs[1][0] > runs[2][0]
    assert 0 < runs[1][1] < runs[2][1]


def test_caches_of_two_runs_share_nothing(model, plan):
    first = model.denoise(plan, STEPS, step_cache=0.3)
    model.denoise(plan, STEPS, seed=5, step_cache=0.3)
    assert torch.equal(model.denoise(plan, STEPS, step_cache=0.3), first)


SCENES = [
    {},
    {"negative_glyph_texts": ["a longer one than the prompt's"]},
    {"guidance_interval": (0.3, 0.7)},
    {"layout": LayoutControl(Layout((TextRegion("HI", 0.1, 0.1, 0.8, 0.5),)), attention=0.5)},
]


@pytest.mark.parametrize("options", SCENES)
def test_batched_and_sequential_guidance_draw_the_same(model, plan, passes, options):
    one_by_one = model.denoise(plan, STEPS, guidance_batching="sequential", **options)
    sequential = passes["passes"]
    batched = model.denoise(plan, STEPS, guidance_batching="batched", **options)
    assert_close(batched, one_by_one, rtol=1e-4, atol=1e-4)
    assert sequential > STEPS and passes["passes"] == sequential + STEPS


def test_several_texts_and_a_reference_batch_as_well(model):
    plan = model.plan("a 'HI' sign", 64, 96, images=[Image.radial_gradient("L").convert("RGB")], count=2)
    texts = {"glyph_texts": [["A"], ["much longer", "BC"]]}
    drawn = [model.denoise(plan, STEPS, guidance_batching=choice, **texts) for choice in ("batched", "sequential")]
    assert_close(*drawn, rtol=1e-4, atol=1e-4)


def made(model, *texts):
    """Passes of a row for each text, shorter ones padded and masked, against no text."""
    dit, ids = model.transformer, torch.zeros(len(texts), 24, dtype=torch.long)
    rows = [[text] if text else [] for text in texts]
    embeds, mask = model.glyph_encoder.embed_batch(rows)
    empty, _ = model.glyph_encoder.embed_batch([[]] * len(texts))
    without = dit.prepare(empty, ids, (4, 6), prior_token_drop=True)
    return CfgPasses(dit.prepare(embeds, ids, (4, 6), glyph_mask=mask), without, 1.5)


@torch.no_grad()
def test_passes_are_batched_where_that_costs_no_mask_and_memory_is_there(model, monkeypatch):
    monkeypatch.setattr(cfg, "available", lambda device: 100)
    monkeypatch.setattr(cfg, "remembered", lambda device, what: None)
    card, cpu = torch.device("cuda"), torch.device("cpu")
    same_length, longer, masked = made(model, ""), made(model, "HELLO"), made(model, "A", "LONGER")
    assert same_length.batches_well(card, 100, offloaded=False)
    assert not same_length.batches_well(card, 101, offloaded=False)
    assert not same_length.batches_well(cpu, 100, offloaded=False)
    assert not longer.batches_well(card, 100, offloaded=False) and longer.batches_well(card, 100, offloaded=True)
    assert masked.batches_well(card, 100, offloaded=False)
    assert not CfgPasses(same_length.conditional, None, 1.0).batches_well(card, 1, offloaded=True)


def test_a_step_cache_leaves_the_passes_apart(model, plan, monkeypatch):
    monkeypatch.setattr(CfgPasses, "batches_well", lambda *_, **__: True)
    apart = model.denoise(plan, STEPS, step_cache=0.3, guidance_batching="sequential")
    assert torch.equal(model.denoise(plan, STEPS, step_cache=0.3), apart)


BAD = [
    ({"guidance_batching": "both"}, "use auto, batched, sequential"),
    ({"guidance_batching": "batched", "step_cache": 0.1}, "use guidance batching auto or sequential"),
    ({"guidance_interval": (0.6, 0.5)}, "guidance interval 0.6 to 0.5 is not accepted"),
    ({"guidance_interval": (-0.1, 0.5)}, "two shares of the steps, from 0 to 1"),
    ({"guidance_interval": (0, float("nan"))}, "guidance interval 0 to nan"),
    ({"step_cache": 0}, "step cache 0 is not accepted"),
    ({"step_cache": 1.5}, "between 0 and 1, such as 0.1"),
]


@pytest.mark.parametrize("given, message", BAD)
def test_values_that_mean_nothing_are_refused_at_the_call(model, plan, given, message):
    with pytest.raises(InputError, match=message):
        model.denoise_steps(plan, **given)


def test_another_seed_needs_no_second_reading_of_the_prompt(references):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype=torch.float32)
    read = []

    def watch(done, total, stage, **_):
        if stage == "prompt":
            read.append(done)

    first = model.plan("a cat", 64, 64, seed=1, progress=watch)
    assert len(read) == 1
    again = model.plan("a cat", 64, 64, seed=2, count=2, temperature=0.5, progress=watch)
    assert len(read) == 1 and len(again) == 2
    assert torch.equal(model.plan("a cat", 64, 64, seed=1).prior_token_ids_d32, first.prior_token_ids_d32)
    model.plan("a cat", 64, 96, progress=watch)
    model.plan("a dog", 64, 64, progress=watch)
    assert len(read) == 3
    model.plan("a cat", 64, 64, progress=watch)  # forgotten meanwhile
    assert len(read) == 4
    model.release()
    model.plan("a cat", 64, 64, progress=watch)
    assert len(read) == 5


def test_seeds_past_what_a_generator_takes_are_refused():
    from comfyui_glm_image.pipeline.denoising.conditioning import sample_noise
    from comfyui_glm_image.pipeline.denoising.options import DenoiseOptions

    with pytest.raises(InputError, match="seed 18446744073709551616 is not accepted"):
        DenoiseOptions(seed=2**64)
    assert sample_noise((1, 16, 2, 2), 2**64 - 1).shape == (1, 16, 2, 2)
    with pytest.raises(InputError, match="leaves no seeds for 2 images; use at most 2.64 - 2"):
        sample_noise((2, 16, 2, 2), 2**64 - 1)
