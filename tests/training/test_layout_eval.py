"""The placement measurement: its layouts, its batches, and that perfect plans score perfectly."""

import shutil

import pytest
import torch
from comfyui_glm_image.pipeline.evaluation import ocr
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.training import data
from comfyui_glm_image.training import layout_eval as E


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
        (picture,) = E.Planted().render([case], Plan(codes.view(1, -1), E.GRID, data.CODEBOOK, ["a"], 0))
        assert ocr.score_layout(case.layout, ocr.read_words(picture)).placement == 1.0, case.words
