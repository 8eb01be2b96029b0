"""The placement measurement: its layouts, its batches, and that perfect plans score perfectly."""

import shutil

import pytest
import torch
from comfyui_glm_image.pipeline.evaluation import ocr
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.pipeline.planning.controls import GridControl
from comfyui_glm_image.tools import layout_eval as E
from comfyui_glm_image.training import data


def test_layouts_hold_held_out_words_of_different_lengths_in_rows_of_their_own():
    cases = E.held_out_cases(100)
    assert sum(len(case.words) for case in cases) == 150
    for case in cases:
        assert all(word in data.HELD_OUT for word in case.words)
        assert len({len(word) for word in case.words}) == len(case.words) == len(set(case.rows))
        assert all(r.x >= 0 and r.right <= 1 + 1e-9 and r.bottom <= 1 + 1e-9 for r in case.layout.regions)


def test_the_same_seed_gives_the_same_layouts():
    assert E.held_out_cases(5, 3) == E.held_out_cases(5, 3) != E.held_out_cases(5, 4)


def test_prompts_say_places_only_when_asked():
    case = E.Case(E.held_out_cases(2)[1].layout, ["OPEN", "TEA"], [0, 2])
    assert case.prompt(False) == 'a white poster that says "OPEN" in black and "TEA" in red'
    assert case.prompt(True) == 'a white poster that says "OPEN" in black at the top and "TEA" in red at the bottom'


def test_joined_controls_hold_each_images_own():
    forced = [GridControl(forced=torch.tensor([k, 0]), forced_mask=torch.tensor([k > 0, False])) for k in range(3)]
    joined = E.joined_controls(forced)
    assert joined.forced.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert joined.forced_mask.tolist() == [[False, False], [True, False], [True, False]]
    row = torch.ones(data.CODEBOOK)
    biased = [GridControl(logit_bias=lambda position: None), GridControl(logit_bias=lambda position: row * position)]
    assert E.joined_controls(biased).bias_at(4).sum(1).tolist() == [0, 4 * data.CODEBOOK]


def test_visibility_of_a_batch_is_padded_on_the_left():
    short, long = E.held_out_cases(2)
    visible = E.joined_visibility([short, long])
    lengths = [sum(len(w) + 1 + (len(c.words) + 1) % 2 for w in c.words) for c in (short, long)]
    assert visible.shape == (2, 4 * E.GRID[0] * E.GRID[1], max(lengths))
    assert not visible[0, :, : max(lengths) - lengths[0]].any()
    assert visible[0, :, max(lengths) - lengths[0] :].any(0).all() and visible[1].any(0).all()


def test_interval_pools_counts():
    share, low, high = E.interval([(1, 1), (0, 2), (1, 1)])
    assert share == 0.5 and low <= 0.5 <= high


@pytest.mark.skipif(not shutil.which("tesseract"), reason="the tesseract program is not installed")
def test_plans_with_the_right_tokens_put_every_word_in_its_box():
    pytest.importorskip("pytesseract")
    for case in E.held_out_cases(6):
        codes = torch.full(E.GRID, data.blank_code(E.PAPER))
        for word, region, row, ink in zip(case.words, case.layout.regions, case.rows, E.INKS):
            for pair in range((len(word) + 1) // 2):
                codes[row, round(region.x * E.GRID[1]) + pair] = data.text_code(E.PAPER, ink, len(word), pair)
        (picture,) = E.Planted().draw([case], Plan(codes.view(1, -1), E.GRID, data.CODEBOOK, ["a"], 0))
        assert ocr.score_layout(case.layout, ocr.read_words(picture)).placement == 1.0, case.words
