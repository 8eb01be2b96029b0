"""Guidance: boxes on grids, forced and favoured tokens, re-planning, glyph visibility, held latents."""

import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.layout import control as G
from comfyui_glm_image.pipeline.layout import sketch
from comfyui_glm_image.pipeline.layout.boxes import box_weights, inside_boxes
from comfyui_glm_image.pipeline.layout.control import PlanControl
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import (
    GenerationConfig,
    GlyphConfig,
    ProcessorConfig,
    VisionLanguageConfig,
)
from comfyui_glm_image.pipeline.models.glyph_encoder import glyph_ids
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from comfyui_glm_image.pipeline.planning.references import prepare_reference

GRIDS = {"preview": (3, 4), "full": (6, 8)}
LAYOUT = Layout((TextRegion("OPEN", 0.12, 0.05, 0.6, 0.25), TextRegion("24h", 0.51, 0.76, 0.49, 0.24)))
SAMPLED = GenerationConfig(temperature=0.9, top_p=0.9, top_k=0)


@pytest.fixture(scope="module")
def small(references):
    """(planner, its prefix for `GRIDS`, the processor's settings) with random weights."""
    folder, _ = references("plain")
    path = folder / "vision_language_encoder"
    config = VisionLanguageConfig.from_json(path / "config.json")
    planner = load_module(Planner, config, path, "cpu", torch.float32)
    encoder = PromptEncoder(folder / "processor", config)
    encoded = encoder.encode("a sign", GRIDS["full"], GRIDS["preview"])
    batch = collate([encoded], GRIDS["full"], GRIDS["preview"], config)
    return planner, prefill(planner, batch, "cpu"), ProcessorConfig.from_folder(folder / "processor")


@pytest.fixture(scope="module")
def tokens(small):
    planner, _, processor = small
    return G.sketch_tokens(planner, sketch.render(LAYOUT, 192, 256), GRIDS, processor)


def planned(small, guidance, tokens, layout=LAYOUT, seeds=(3, 4)):
    planner, prefix, _ = small
    controls = G.plan_controls(guidance, layout, tokens, GRIDS)
    return decode(planner, prefix, SAMPLED, seeds, controls=controls)


@pytest.fixture(scope="module")
def plain(small):
    planner, prefix, _ = small
    return decode(planner, prefix, SAMPLED, (3, 4))


@pytest.mark.parametrize("grid", [(1, 1), (4, 5), (8, 10), (33, 7)])
def test_a_cell_belongs_to_a_box_when_its_centre_does(grid):
    inside = inside_boxes(LAYOUT, grid)
    for region, cells in zip(LAYOUT.regions, inside):
        expected = [
            [region.x <= (c + 0.5) / grid[1] <= region.right and region.y <= (r + 0.5) / grid[0] <= region.bottom
             for c in range(grid[1])] for r in range(grid[0])
        ]  # fmt: skip
        if any(map(any, expected)):
            assert cells.tolist() == expected
        else:
            assert int(cells.sum()) == 1


def test_a_box_smaller_than_a_cell_takes_exactly_one():
    tiny = Layout((TextRegion("a", 0.52, 0.52, 0.01, 0.01),))
    inside = inside_boxes(tiny, (4, 4))[0]
    assert inside.nonzero().tolist() == [[2, 2]]
    assert float(box_weights(tiny, (4, 4), falloff=3).max()) == 1.0


def test_falloff_rises_from_the_edge_inwards_and_never_reaches_outside():
    full = Layout((TextRegion("a", 0.25, 0.25, 0.5, 0.5),))
    weights = box_weights(full, (16, 16), falloff=2)[0]
    assert torch.equal(weights > 0, inside_boxes(full, (16, 16))[0])
    assert weights[8, 4:8].tolist() == [0.25, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("guidance", [PlanControl(), PlanControl("bias", strength=0.0)])
def test_guidance_that_is_off_leaves_every_token_as_it_was(small, tokens, plain, guidance):
    result = planned(small, guidance, tokens)
    assert set(result) == set(plain) == set(GRIDS)
    for name, ids in plain.items():
        assert torch.equal(result[name], ids)


@pytest.mark.parametrize("grids", ["both", "preview", "full"])
def test_forced_tokens_are_the_sketchs_inside_boxes_and_nowhere_else(small, tokens, grids):
    guidance = PlanControl("force", grids=grids)
    controls = G.plan_controls(guidance, LAYOUT, tokens, GRIDS)
    result = planned(small, guidance, tokens)
    for name, grid in GRIDS.items():
        inside = inside_boxes(LAYOUT, grid).any(0).flatten()
        expected = {"preview": 1 * 3 + 1 * 2, "full": 2 * 5 + 1 * 4}[name]  # counted by hand from LAYOUT
        assert int(inside.sum()) == expected
        if grids in ("both", name):
            assert int(controls[name].forced_mask.sum()) == expected
            assert not bool(controls[name].forced_mask[~inside].any())
            assert (result[name][:, inside] == tokens[name][inside]).all()
        else:
            assert name not in controls


def test_a_strong_bias_takes_the_sketchs_tokens_and_a_weak_one_some(small, tokens):
    inside = inside_boxes(LAYOUT, GRIDS["full"]).any(0).flatten()

    def share(strength):
        ids = planned(small, PlanControl("bias", strength=strength, grids="full"), tokens)["full"]
        return float((ids[:, inside] == tokens["full"][inside]).float().mean())

    shares = [share(strength) for strength in (0.0, 5.0, 100.0)]
    assert shares[0] < 0.2 and shares[2] == 1.0 and shares[0] <= shares[1] <= shares[2]


def test_a_bias_of_the_full_grid_leaves_the_preview_as_it_was(small, tokens, plain):
    result = planned(small, PlanControl("bias", strength=50.0, grids="full"), tokens)
    assert torch.equal(result["preview"], plain["preview"])


def test_replanning_keeps_every_token_outside_the_boxes(small, plain):
    planner, prefix, _ = small
    codebook = planner.config.vq_config.num_embeddings
    plan = Plan(plain["full"], GRIDS["full"], codebook, ["a", "a"], 3, plain["preview"], GRIDS["preview"])
    again = decode(planner, prefix, SAMPLED, (90, 91), controls=G.replan_controls(plan, LAYOUT))
    for name, grid in GRIDS.items():
        inside = inside_boxes(LAYOUT, grid).any(0).flatten()
        assert torch.equal(again[name][:, ~inside], plain[name][:, ~inside])
        assert not torch.equal(again[name][:, inside], plain[name][:, inside])


def test_replanning_with_forced_sketch_tokens_does_both(small, tokens, plain):
    planner, prefix, _ = small
    codebook = planner.config.vq_config.num_embeddings
    plan = Plan(plain["full"], GRIDS["full"], codebook, ["a", "a"], 3, plain["preview"], GRIDS["preview"])
    forced = G.plan_controls(PlanControl("force", grids="full"), LAYOUT, tokens, GRIDS)
    controls = G.merge_controls(G.replan_controls(plan, LAYOUT), forced)
    again = decode(planner, prefix, SAMPLED, (90, 91), controls=controls)["full"]
    inside = inside_boxes(LAYOUT, GRIDS["full"]).any(0).flatten()
    assert (again[:, inside] == tokens["full"][inside]).all()
    assert torch.equal(again[:, ~inside], plain["full"][:, ~inside])


def test_sketch_tokens_equal_those_of_the_same_picture_as_a_reference(small):
    planner, _, processor = small
    image = sketch.render(LAYOUT, 640, 960)
    prepared = prepare_reference(image, processor)
    with torch.no_grad():
        expected = planner.tokenize_image(prepared.vit_pixels)
    assert torch.equal(G.sketch_tokens(planner, image, {"full": prepared.grid}, processor)["full"], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "push"}, "plan control mode 'push'; use off, bias, force"),
        ({"grids": "none"}, "controlled grids 'none'"),
        ({"strength": -1.0}, "must lie in 0..1000"),
        ({"falloff": float("nan")}, "must lie in 0..1000"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        PlanControl(**fields)


def test_a_plan_without_a_preview_has_none_to_guide(tokens):
    with pytest.raises(InputError, match="no preview grid to control"):
        G.plan_controls(PlanControl("force", grids="preview"), LAYOUT, tokens, {"full": GRIDS["full"]})


@pytest.fixture(scope="module")
def glyph_config(references):
    return GlyphConfig.from_json(references("plain")[0] / "text_encoder" / "config.json")


@pytest.mark.parametrize(
    "texts", [["OPEN", "24h"], ["24h", "OPEN"], ["extra", "OPEN", "24h"], ["OPEN", "24h", "长" * 900]]
)
def test_patches_of_a_box_see_their_own_string_only(texts, glyph_config):
    patches = (16, 20)
    visible = G.regional_attention_mask(LAYOUT, texts, patches)
    lengths = [len(row) for row in glyph_ids(texts, glyph_config)]
    assert visible.shape == (1, 16 * 20, sum(lengths))
    inside = inside_boxes(LAYOUT, patches).flatten(1)
    for region, where in zip(LAYOUT.regions, inside):
        start = sum(lengths[: texts.index(region.text)])
        expected = torch.zeros(sum(lengths), dtype=torch.bool)
        expected[start : start + lengths[texts.index(region.text)]] = True
        assert (visible[0, where] == expected).all()
    assert visible[0, ~inside.any(0)].all()
    hidden = G.regional_attention_mask(LAYOUT, texts, patches, elsewhere=False)
    assert not hidden[0, ~inside.any(0)].any()


def test_equal_strings_go_to_their_boxes_in_reading_order():
    page = Layout((TextRegion("GO", 0.0, 0.6, 1.0, 0.4), TextRegion("GO", 0.0, 0.0, 1.0, 0.4)))
    visible = G.regional_attention_mask(page, ["GO", "GO"], (10, 10))[0]
    assert visible[0].tolist() == [True] * 4 + [False] * 4  # top rows: the first string (pad, G, O, end)
    assert visible[-1].tolist() == [False] * 4 + [True] * 4


def test_a_string_the_encoder_does_not_get_is_named():
    with pytest.raises(InputError, match='region 2: "24h" is not among the glyph texts'):
        G.regional_attention_mask(LAYOUT, ["OPEN"], (16, 20))


def test_boxes_follow_the_sketch_above_the_level_and_are_free_below_it():
    noise, clean, latents = (torch.randn(1, 16, 32, 40, generator=torch.Generator().manual_seed(k)) for k in range(3))
    hold = G.latent_holder(clean, noise, LAYOUT, 0.6)
    inside = inside_boxes(LAYOUT, (32, 40)).any(0)
    held = hold(latents, 0.75)
    assert torch.equal(held[..., inside], (0.75 * noise + 0.25 * clean)[..., inside])
    assert torch.equal(held[..., ~inside], latents[..., ~inside])
    assert hold(latents, 0.6) is latents


def test_level_one_never_holds_and_other_levels_are_checked():
    noise = torch.zeros(1, 16, 4, 4)
    assert G.latent_holder(noise, noise, LAYOUT, 1.0)(noise, 1.0) is noise
    with pytest.raises(InputError, match="noise level 1.5 is out of range"):
        G.latent_holder(noise, noise, LAYOUT, 1.5)
