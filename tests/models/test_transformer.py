"""The diffusion transformer against diffusers' on the same random weights, and its shortcuts against the plain pass."""

import contextlib

import pytest
import torch
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import DitConfig
from comfyui_glm_image.pipeline.models.transformer import Dit
from comfyui_glm_image.pipeline.models.transformer_context import FirstBlockCache, ReferenceCache, join_guidance
from comfyui_glm_image.pipeline.plan import upsample_tokens
from torch import nn
from torch.testing import assert_close

GRID = (4, 6)  # patches
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def load(folder):
    folder = folder / "transformer"
    return load_module(Dit, DitConfig.from_json(folder / "config.json"), folder, "cpu", torch.float32)


@pytest.fixture(scope="module")
def pair(reference):
    """(our transformer, diffusers' transformer) with the same weights."""
    folder, pipe = reference
    return load(folder), pipe.transformer


@pytest.fixture(scope="module")
def dit(references):
    return load(references("plain")[0])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(config, batch=1, glyphs=5, seed=0, grid=GRID):
    ids = torch.randint(
        config.prior_vq_quantizer_codebook_size,
        (batch, grid[0] * grid[1]),
        generator=torch.Generator().manual_seed(seed + 1),
    )
    return {
        "latents": draw(batch, config.in_channels, 2 * grid[0], 2 * grid[1], seed=seed),
        "glyph_embeds": draw(batch, glyphs, config.text_embed_dim, seed=seed + 2),
        "prior_token_ids": ids,
        "prior_token_drop": torch.zeros_like(ids, dtype=torch.bool),
        "timestep": torch.linspace(900, 100, batch),
        "target_size": torch.tensor([[16.0 * grid[0], 16.0 * grid[1]]]).repeat(batch, 1),
        "crop_coords": torch.zeros(batch, 2),
    }


def theirs(model, given, **extra):
    names = {"latents": "hidden_states", "glyph_embeds": "encoder_hidden_states", "prior_token_ids": "prior_token_id"}
    with torch.no_grad():
        return model(**{names.get(key, key): value for key, value in given.items()}, **extra, return_dict=False)[0]


def conditional(dit, given, **extra):
    return dit.prepare(given["glyph_embeds"], given["prior_token_ids"], GRID, **extra)


def modulations(dit, given, timesteps=(700.0,)):
    return dit.modulations(
        torch.tensor(timesteps), given["target_size"][:1], given["crop_coords"][:1], given["latents"].dtype
    )


def test_one_pass_equals_diffusers_for_a_batch_of_different_times(pair):
    ours, reference = pair
    given = inputs(ours.config, batch=2)
    assert_close(ours(**given), theirs(reference, given), **CLOSE)


def test_dropped_prior_tokens_equal_diffusers_row_by_row_and_all_at_once(pair):
    ours, reference = pair
    given = inputs(ours.config, batch=2)
    given["prior_token_drop"][1] = True
    given["prior_token_drop"][0, ::3] = True
    assert_close(ours(**given), theirs(reference, given), **CLOSE)
    given["prior_token_drop"][:] = True
    assert_close(ours(**{**given, "prior_token_drop": True}), theirs(reference, given), **CLOSE)


def test_ids_that_repeat_in_squares_are_projected_once(pair):
    ours, _ = pair
    given = inputs(ours.config, batch=2)
    given["prior_token_ids"] = upsample_tokens(
        given["prior_token_ids"][:, : GRID[0] * GRID[1] // 4], (GRID[0] // 2, GRID[1] // 2)
    )
    seen = []
    hook = ours.prior_projector.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].numel()))
    each, once = (conditional(ours, given, repeats=repeats).prior for repeats in (1, 2))
    hook.remove()
    assert_close(once, each, rtol=0, atol=1e-6)
    assert seen[0] == 4 * seen[1]


def test_no_glyphs_at_all_equals_diffusers(pair):
    ours, reference = pair
    given = inputs(ours.config, glyphs=0)
    assert_close(ours(**given), theirs(reference, given), **CLOSE)


def test_two_references_equal_diffusers_cache(pair):
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    ours, reference = pair
    cache = GlmImageKVCache(num_layers=ours.config.num_layers)
    cache.set_mode("write")
    written = []
    for seed, grid in ((10, (4, 2)), (20, (2, 6))):
        image = inputs(ours.config, glyphs=0, seed=seed, grid=grid) | {"timestep": torch.zeros(1)}
        theirs(reference, image, kv_caches=cache)
        written.append(ours.encode_reference(image["latents"], image["prior_token_ids"]))
    cache.set_mode("read")
    given = inputs(ours.config, batch=2)
    shown = ours(**given, references=ReferenceCache.join(written))
    assert_close(shown, theirs(reference, given, kv_caches=cache), **CLOSE)
    assert (shown - ours(**given)).abs().max() > 1e-2


def test_masked_glyph_padding_changes_nothing(dit):
    given = inputs(dit.config)
    padded = given | {"glyph_embeds": torch.cat((draw(1, 3, dit.config.text_embed_dim), given["glyph_embeds"]), dim=1)}
    mask = torch.tensor([[False] * 3 + [True] * 5])
    assert_close(dit(**padded, glyph_mask=mask), dit(**given), **CLOSE)
    assert (dit(**padded) - dit(**given)).abs().max() > 1e-3


def test_visible_glyphs_limit_what_an_image_token_reads(dit):
    """With one block, an image token that sees no glyph cannot depend on any."""
    short = Dit(dit.config, operations=nn)
    short.load_state_dict(dit.state_dict())
    short.transformer_blocks = short.transformer_blocks[:1]
    given = inputs(dit.config)
    other = given | {"glyph_embeds": draw(1, 5, dit.config.text_embed_dim, seed=9)}
    visible = torch.ones(1, 24, 5, dtype=torch.bool)
    visible[:, :12] = False  # the upper two rows of patches
    with torch.no_grad():
        first, second = short(**given, glyph_visible=visible), short(**other, glyph_visible=visible)
    assert_close(first[:, :, :4], second[:, :, :4])
    assert (first[:, :, 4:] - second[:, :, 4:]).abs().max() > 1e-3


def test_everything_visible_is_the_plain_pass(dit):
    given = inputs(dit.config)
    assert_close(dit(**given, glyph_visible=torch.ones(1, 24, 5, dtype=torch.bool)), dit(**given), **CLOSE)


def test_prepared_steps_equal_whole_passes_at_every_time(dit):
    given = inputs(dit.config)
    context, table = conditional(dit, given), modulations(dit, given, (999.0, 500.0, 0.0))
    for step, time in enumerate((999.0, 500.0, 0.0)):
        whole = dit(**given | {"timestep": torch.tensor([time])})
        assert_close(dit.step(given["latents"], table[step], context), whole, **CLOSE)


@pytest.mark.parametrize("glyphs", [1, 5])
def test_both_guidance_passes_in_one_batch_equal_two_passes(dit, glyphs):
    given = inputs(dit.config, batch=2, glyphs=glyphs)
    image = inputs(dit.config, seed=10)
    cache, of_each = (
        dit.encode_reference(image["latents"].repeat(rows, 1, 1, 1), image["prior_token_ids"].repeat(rows, 1))
        for rows in (1, 2)
    )
    for references in (None, cache, of_each):
        shown = conditional(dit, given, references=references)
        empty = dit.prepare(given["glyph_embeds"][:, :3], given["prior_token_ids"], GRID, prior_token_drop=True)
        table = modulations(dit, given)
        both = dit.step(given["latents"].repeat(2, 1, 1, 1), table, join_guidance(shown, empty))
        apart = [dit.step(given["latents"], table, context) for context in (shown, empty)]
        assert_close(both, torch.cat(apart), **CLOSE)


def test_no_mask_is_made_when_nothing_is_hidden(dit):
    given = inputs(dit.config)
    image = inputs(dit.config, seed=10)
    cache = dit.encode_reference(image["latents"], image["prior_token_ids"])
    assert conditional(dit, given, references=cache).mask is None


def test_masks_are_boolean(dit):
    mask = conditional(dit, inputs(dit.config), glyph_mask=torch.tensor([[False, True, True, True, True]])).mask
    assert mask.dtype == torch.bool


@contextlib.contextmanager
def counted(module):
    """The calls of a module."""
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_first_block_cache_of_an_unchanged_input_repeats_the_result_and_skips_the_blocks(dit):
    given = inputs(dit.config)
    context, table, cache = conditional(dit, given), modulations(dit, given), FirstBlockCache(threshold=0.01)
    first = dit.step(given["latents"], table, context, cache)
    assert torch.equal(first, dit.step(given["latents"], table, context))
    with counted(dit.transformer_blocks[-1]) as calls:
        assert_close(dit.step(given["latents"], table, context, cache), first, **CLOSE)
    assert not calls


def test_first_block_cache_recomputes_when_the_first_block_moves(dit):
    given = inputs(dit.config)
    context, table, cache = conditional(dit, given), modulations(dit, given), FirstBlockCache(threshold=0.01)
    dit.step(given["latents"], table, context, cache)
    moved = given["latents"] * 1.5
    with counted(dit.transformer_blocks[-1]) as calls:
        assert torch.equal(dit.step(moved, table, context, cache), dit.step(moved, table, context))
    assert len(calls) == 2


def test_bfloat16_stays_near_float32(references):
    dit = load(references("plain")[0])
    given = inputs(dit.config)
    wide = dit(**given)
    half = {key: value.bfloat16() if key in ("latents", "glyph_embeds") else value for key, value in given.items()}
    narrow = dit.bfloat16()(**half)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() / wide.norm() < 0.05


def test_every_parametrised_layer_comes_from_operations_and_is_called(references):
    """What ComfyUI relies on for offloading and fp8."""
    built, called = [], set()

    def counting(base):
        class Layer(base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                built.append(self)

            def forward(self, x):
                called.add(self)
                return super().forward(x)

        return Layer

    class Operations:
        Linear, Embedding = counting(nn.Linear), counting(nn.Embedding)

    config = DitConfig.from_json(references("plain")[0] / "transformer" / "config.json")
    dit = Dit(config, operations=Operations, dtype=torch.float32)
    dit(**inputs(config))
    assert called == set(built)
    owned = {id(p) for layer in built for p in layer.parameters()}
    assert all(id(p) in owned for p in dit.parameters())


def test_training_reaches_every_weight(references):
    config = DitConfig.from_json(references("plain")[0] / "transformer" / "config.json")
    dit = Dit(config)
    dit(**inputs(config, batch=2)).square().mean().backward()
    dead = [name for name, p in dit.named_parameters() if p.grad is None]
    # The glyph half of the last block's outputs is dropped, but shares its weights with the image half.
    assert dead == []
