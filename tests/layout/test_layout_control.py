"""A layout through the whole pipeline: in `GlmImage`, for one image and for each of a batch."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.denoising.conditioning import noise_shape, sample_noise
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.layout.boxes import inside_boxes
from comfyui_glm_image.pipeline.layout.control import PlanControl, latent_holder, plan_controls, sketch_tokens
from comfyui_glm_image.pipeline.layout.layout_control import LayoutControl, attention_mask_for
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.layout.sketch import render
from PIL import Image

HEIGHT, WIDTH = 192, 256
LAYOUT = Layout((TextRegion("HI", 0.1, 0.1, 0.5, 0.3), TextRegion("BYE", 0.3, 0.6, 0.6, 0.3)))
OTHER = Layout((TextRegion("A", 0.5, 0.5, 0.4, 0.4),))
OFF = PlanControl("off")
FORCE = PlanControl("force")


@pytest.fixture(scope="module")
def model(references):
    return GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def plan(model):
    return model.plan("a sign", HEIGHT, WIDTH, seed=3)


def denoised(model, plan, layout=None):
    return model.denoise(plan, steps=4, seed=5, glyph_texts=LAYOUT.glyph_texts(), layout=layout)


def forced_tokens(model, layout):
    grids = {"preview": (13, 18), "full": (6, 8)}
    tokens = sketch_tokens(model.planner, render(layout, HEIGHT, WIDTH), grids, model.settings.processor)
    return plan_controls(FORCE, layout, tokens, grids)["full"]


def test_a_forced_layout_stands_in_the_plan(model):
    control = forced_tokens(model, LAYOUT)
    made = model.plan("a sign", HEIGHT, WIDTH, seed=3, layout=LayoutControl(LAYOUT, FORCE))
    inside = control.forced_mask
    assert inside.any() and torch.equal(made.prior_token_ids_d32[0, inside], control.forced[inside])


def test_each_image_of_a_batch_can_have_a_layout_of_its_own(model):
    layouts = [LayoutControl(LAYOUT, FORCE), LayoutControl(OTHER, FORCE)]
    both = model.plan("a sign", HEIGHT, WIDTH, seed=3, count=2, layout=layouts)
    alone = [
        model.plan("a sign", HEIGHT, WIDTH, seed=3 + k, layout=layout).prior_token_ids_d32[0]
        for k, layout in enumerate(layouts)
    ]
    assert torch.equal(both.prior_token_ids_d32, torch.stack(alone))


def test_a_bias_of_each_image_acts_on_it_alone(model):
    layouts = [LayoutControl(LAYOUT, PlanControl("bias", 12.0)), LayoutControl(OTHER, PlanControl("bias", 12.0))]
    both = model.plan("a sign", HEIGHT, WIDTH, seed=3, count=2, layout=layouts)
    second = model.plan("a sign", HEIGHT, WIDTH, seed=4, layout=layouts[1])
    assert torch.equal(both.prior_token_ids_d32[1:], second.prior_token_ids_d32)


def test_masks_of_a_batch_are_padded_on_the_left():
    rows = [LayoutControl(OTHER), LayoutControl(LAYOUT)]
    mask = attention_mask_for(rows, [row.layout.glyph_texts() for row in rows], HEIGHT, WIDTH)
    assert mask.shape == (2, 12 * 16, 9)  # a pad for two texts, their bytes and ends; one text has no pad
    assert not mask[0, :, :7].any() and mask[0, :, 7:].any() and mask[1].any(0).all()


def test_a_bias_of_nothing_changes_nothing(model, plan):
    for control in (OFF, PlanControl("bias", 0.0)):
        again = model.plan("a sign", HEIGHT, WIDTH, seed=3, layout=LayoutControl(LAYOUT, control))
        assert torch.equal(again.prior_token_ids_d32, plan.prior_token_ids_d32)


def test_attention_is_controlled_in_the_first_steps_only(model, plan):
    plain = denoised(model, plan)
    off, early, always = (denoised(model, plan, LayoutControl(LAYOUT, attention=share)) for share in (0.0, 0.5, 1.0))
    assert torch.equal(plain, off)
    assert not torch.equal(plain, early) and not torch.equal(early, always)


def test_boxes_follow_the_sketch_and_a_level_of_one_changes_nothing(model, plan):
    plain = denoised(model, plan)
    assert torch.equal(denoised(model, plan, LayoutControl(LAYOUT, attention=0.0, sketch_level=1.0)), plain)
    held = denoised(model, plan, LayoutControl(LAYOUT, attention=0.0, sketch_level=0.0))
    clean = model.encode(torch.from_numpy(np.array(render(LAYOUT, HEIGHT, WIDTH)))[None] / 255)
    inside = inside_boxes(LAYOUT, clean.shape[-2:]).any(0)
    assert (held - clean)[..., inside].abs().mean() < 0.3 * (plain - clean)[..., inside].abs().mean()
    assert torch.isfinite(held).all()


def test_a_sketch_of_ones_own_takes_the_place_of_the_layouts(model, plan):
    black = Image.new("RGB", (64, 64))
    held = denoised(model, plan, LayoutControl(LAYOUT, attention=0.0, sketch_level=0.0, sketch=black))
    clean = model.encode(torch.zeros(1, HEIGHT, WIDTH, 3))
    noise = sample_noise(noise_shape(1, HEIGHT, WIDTH), 5)
    last = latent_holder(clean, noise, LAYOUT, 0.0)(held, 1e-9)
    inside = inside_boxes(LAYOUT, clean.shape[-2:]).any(0)
    plain = denoised(model, plan)
    assert (held - last)[..., inside].abs().mean() < 0.3 * (plain - last)[..., inside].abs().mean()


def test_the_layouts_texts_are_rendered_unless_others_are_given(model, plan):
    control = LayoutControl(LAYOUT, attention=0.0)
    own = model.denoise(plan, steps=2, seed=5, layout=control)
    assert torch.equal(own, model.denoise(plan, steps=2, seed=5, glyph_texts=LAYOUT.glyph_texts()))


BAD = [
    (LayoutControl(Layout()), "the layout has no regions"),
    (LayoutControl(Layout((TextRegion("A", 0.9, 0.9, 0.5, 0.5),))), "outside the page"),
    ([LAYOUT, LAYOUT], "a list of 1, one for each image"),
    ("HI", "must be a Layout or a LayoutControl"),
]


@pytest.mark.parametrize("layout, message", BAD)
def test_wrong_layouts_are_refused_before_anything_loads(references, layout, message):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype="fp32")
    with pytest.raises(InputError, match=message):
        model.generate("a sign", HEIGHT, WIDTH, layout=layout)
    assert not model.components.loaded


def test_texts_that_the_layout_does_not_have_are_refused_before_anything_loads(references):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype="fp32")
    with pytest.raises(InputError, match="is not among the glyph texts"):
        model.generate("a sign", HEIGHT, WIDTH, layout=LAYOUT, glyph_texts=["HI"])
    with pytest.raises(InputError, match="must be followed equally"):
        model.generate("a", HEIGHT, WIDTH, count=2, layout=[LAYOUT, LayoutControl(LAYOUT, attention=0.9)])
    assert not model.components.loaded


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True, "0.3"])
def test_shares_lie_between_nothing_and_all(share):
    with pytest.raises(InputError, match="attention .* is not accepted"):
        LayoutControl(LAYOUT, attention=share)
