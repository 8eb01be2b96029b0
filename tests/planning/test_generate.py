"""Sampling against transformers' warpers, and what plans promise: complete, in range, seeded, interruptible."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import GenerationConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.planning.controls import GridControl, grid_spans
from comfyui_glm_image.pipeline.planning.decode_step import DecodeStep
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from comfyui_glm_image.pipeline.planning.sampling import Noise, warp
from comfyui_glm_image.pipeline.planning.steps import new_step
from torch.testing import assert_close

GRID, PREVIEW = (4, 9), (2, 3)
SAMPLED = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
GREEDY = replace(SAMPLED, temperature=0.0)


@pytest.fixture(scope="module")
def model(references):
    """(planner, prompt encoder) of one small configuration."""
    folder, _ = references("wide")
    path = folder / "vision_language_encoder"
    config = VisionLanguageConfig.from_json(path / "config.json")
    return load_module(Planner, config, path, "cpu", torch.float32), PromptEncoder(folder / "processor", config)


def prefix_of(model, *prompts, preview=PREVIEW):
    planner, encoder = model
    batch = collate([encoder.encode(p, GRID, preview) for p in prompts], GRID, preview, encoder.config)
    return prefill(planner, batch, "cpu")


@pytest.fixture(scope="module")
def prefix(model):
    return prefix_of(model, "a sampled picture")


def scores(rows, codebook, seed=0, scale=2.0):
    return torch.randn(rows, codebook, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.05, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 100, 5000])
def test_probabilities_equal_transformers(temperature, top_p, top_k):
    generation = pytest.importorskip("transformers").GenerationConfig
    mixin = pytest.importorskip("transformers.generation.utils").GenerationMixin
    settings = generation(do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k)
    processors = mixin()._get_logits_processor(settings, input_ids_seq_length=1)
    logits = scores(6, 301)
    wanted = processors(torch.zeros(6, 1, dtype=torch.long), logits.clone()).softmax(-1)
    ours = warp(logits, GenerationConfig(temperature, top_p, top_k)).softmax(-1)
    assert_close(ours, wanted, atol=1e-6, rtol=0)


def test_equal_scores_leave_in_the_order_of_their_ids():
    kept = warp(torch.zeros(1, 8), GenerationConfig(1.0, 0.5, 0)).isfinite()[0]
    assert kept.tolist() == [False] * 4 + [True] * 4


def test_the_likeliest_stays_whatever_top_p():
    kept = warp(scores(6, 16384, scale=0.0).fill_diagonal_(1e-6), GenerationConfig(1.0, 1e-9, 0)).isfinite()
    assert kept.sum(dim=-1).tolist() == [1] * 6
    assert kept.diagonal().all()


def test_drawn_tokens_follow_the_distribution():
    """A chi-squared test of 40,000 draws at its 1 - 1e-6 quantile (Wilson and Hilferty's approximation)."""
    logits, draws = scores(1, 40, scale=1.0), 40_000
    warped = warp(logits, replace(SAMPLED, top_p=0.9))
    probabilities = warped.softmax(-1)[0]
    tokens = (warped + Noise([3], 40).block(draws)[:, 0]).argmax(-1)
    counts = torch.bincount(tokens, minlength=40)
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    expected = probabilities[kept] * draws
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = int(kept.sum()) - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 4.75 * (2 / (9 * degrees)) ** 0.5) ** 3
    assert statistic < quantile


def test_noise_depends_on_the_seed_alone_and_not_on_blocks_or_batch():
    whole = Noise([1, 2, 3], 17).block(20)
    parts = Noise([2], 17)
    split = torch.cat([parts.block(n) for n in (1, 4, 15)])
    assert torch.equal(split[:, 0], whole[:, 1])
    assert whole.isfinite().all()


def test_global_random_state_is_neither_read_nor_moved(model, prefix):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = decode(model[0], prefix, SAMPLED, [8])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert_close(decode(model[0], prefix, SAMPLED, [8]), first)


def test_an_image_of_a_batch_of_four_equals_the_image_alone(model, prefix):
    seeds = [10, 11, 12, 13]
    together = decode(model[0], prefix, SAMPLED, seeds)
    for row, seed in enumerate(seeds):
        alone = decode(model[0], prefix, SAMPLED, [seed])
        for name in alone:
            assert_close(together[name][row], alone[name][0])
    assert len({tuple(row.tolist()) for row in together["full"]}) == 4


def test_a_batch_of_prompts_equals_each_prompt_alone(model):
    prompts = ["one", "another, longer one"]
    together = decode(model[0], prefix_of(model, *prompts), SAMPLED, [4, 5])
    for row, prompt in enumerate(prompts):
        alone = decode(model[0], prefix_of(model, prompt), SAMPLED, [4 + row])
        assert_close(together["full"][row], alone["full"][0])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, temperature=50.0, top_p=1.0)])
def test_plans_are_complete_and_in_range_when_the_model_wants_to_stop(model, sampling):
    """The head is biased to the end and start tokens, which an unconstrained sampler would draw at once."""
    planner = copy.deepcopy(model[0])
    codebook = planner.config.vq_config.num_embeddings
    head = torch.nn.Linear(planner.lm_head.in_features, planner.lm_head.out_features)
    head.weight, head.bias = planner.lm_head.weight, torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[codebook:] = 1e4
    planner.lm_head = head.requires_grad_(False)
    tokens = decode(planner, prefix_of((planner, model[1]), "stop"), sampling, [0, 1])
    assert tokens["full"].shape == (2, GRID[0] * GRID[1]) and tokens["preview"].shape == (2, PREVIEW[0] * PREVIEW[1])
    for ids in tokens.values():
        assert ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < codebook


def test_plans_without_a_preview_have_the_full_grid_only(model):
    tokens = decode(model[0], prefix_of(model, "no preview", preview=None), SAMPLED, [0])
    assert list(tokens) == ["full"]
    assert grid_spans([GRID]) == {"full": range(0, 36)}
    assert grid_spans([PREVIEW, GRID]) == {"preview": range(0, 6), "full": range(6, 42)}


def test_progress_reports_every_token_with_the_tokens_so_far(model, prefix):
    reports = []
    tokens = decode(model[0], prefix, SAMPLED, [3], rows=1, progress=lambda *a, **info: reports.append((a, info)))
    assert [a for a, _ in reports] == [(k, 42) for k in range(1, 43)]
    assert [info["grid"] for _, info in reports] == ["preview"] * 6 + ["full"] * 36
    so_far = reports[9][1]["tokens"]
    assert_close(so_far, torch.cat([tokens["preview"], tokens["full"]], dim=1)[:, :10])


def test_a_raising_progress_callback_stops_after_that_token(model, prefix):
    class Stop(BaseException):
        pass

    steps = itertools.count()

    def run(step, k):
        next(steps)
        step.eager(k)

    def stop(done, total, **_):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        decode(model[0], prefix, SAMPLED, [3], rows=1, progress=stop, run=run)
    assert next(steps) == 4  # token 0 comes from the prompt
    fresh = decode(model[0], prefix_of(model, "a sampled picture"), SAMPLED, [3])
    assert_close(decode(model[0], prefix, SAMPLED, [3]), fresh)


def captured(step, k):
    DecodeStep.captured(step, step.bucket(k))


@pytest.mark.parametrize("run", [DecodeStep.eager, captured])
def test_forced_tokens_stay_and_steer_what_follows(model, prefix, run):
    free = decode(model[0], prefix, SAMPLED, [3])
    forced = torch.full((2, 36), 7)
    mask = torch.zeros(2, 36, dtype=torch.bool)
    mask[0, 10:20] = True
    controls = {"full": GridControl(forced=forced, forced_mask=mask)}
    held = decode(model[0], prefix, SAMPLED, [3, 3], controls=controls, rows=1, run=run)
    assert_close(held["preview"], free["preview"].expand(2, -1))
    assert_close(held["full"][1], free["full"][0])
    assert_close(held["full"][0, :10], free["full"][0, :10])
    assert (held["full"][0, 10:20] == 7).all()
    assert not torch.equal(held["full"][0, 20:], free["full"][0, 20:])


def test_forcing_a_whole_grid_returns_it(model, prefix):
    wanted = torch.arange(36) % 50
    control = GridControl(forced=wanted, forced_mask=torch.ones(36, dtype=torch.bool))
    tokens = decode(model[0], prefix, SAMPLED, [1, 2], controls={"full": control})
    assert_close(tokens["full"], wanted.expand(2, -1))


@pytest.mark.parametrize("run", [DecodeStep.eager, captured])
def test_logit_bias_acts_on_its_positions_only(model, prefix, run):
    bias = torch.zeros(36)
    bias[12:15] = 1e4
    biased = torch.full((36,), 33)
    by_tensor = decode(
        model[0], prefix, SAMPLED, [3], rows=1, controls={"full": GridControl(biased=biased, bias=bias)}, run=run
    )
    by_rows = decode(
        model[0],
        prefix,
        SAMPLED,
        [3],
        rows=1,
        controls={"full": GridControl(biased=biased[None], bias=bias[None])},
        run=run,
    )
    free = decode(model[0], prefix, SAMPLED, [3])
    assert (by_tensor["full"][0, 12:15] == 33).all()
    assert_close(by_tensor["full"][0, :12], free["full"][0, :12])
    assert_close(by_rows, by_tensor)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"small": GridControl()}, "no 'small' grid .* it has preview, full"),
        ({"full": GridControl(forced=torch.zeros(36, dtype=torch.long))}, "both the tokens and their mask"),
        ({"full": GridControl(torch.zeros(9), torch.ones(9).bool())}, "must number 36"),
        ({"full": GridControl(torch.full((36,), 100), torch.ones(36).bool())}, "outside the codebook of 100"),
        ({"full": GridControl(biased=torch.zeros(36, dtype=torch.long))}, "both the tokens and their bias"),
        ({"full": GridControl(biased=torch.full((36,), 100), bias=torch.ones(36))}, "outside the codebook of 100"),
    ],
)
def test_bad_controls_are_refused(model, prefix, controls, message):
    with pytest.raises(InputError, match=message):
        decode(model[0], prefix, SAMPLED, [0], controls=controls)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is not accepted"),
        ({"temperature": float("nan")}, "temperature nan is not accepted"),
        ({"top_p": 0.0}, "top_p 0.0 is not accepted"),
        ({"top_p": 1.5}, "top_p 1.5 is not accepted"),
        ({"top_k": -1}, "top_k -1 is not accepted"),
    ],
)
def test_bad_sampling_is_refused(model, prefix, settings, message):
    with pytest.raises(InputError, match=message):
        decode(model[0], prefix, replace(SAMPLED, **settings), [0])


def test_seeds_must_match_the_prompts(model):
    with pytest.raises(InputError, match="2 prompts need as many seeds, got 3"):
        decode(model[0], prefix_of(model, "one", "two"), SAMPLED, [0, 1, 2])


def test_a_step_of_another_batch_is_refused(model, prefix):
    step = new_step(model[0], prefix, SAMPLED, 2)
    with pytest.raises(ValueError, match="make one with new_step"):
        decode(model[0], prefix, SAMPLED, [0], step=step)
    with pytest.raises(ValueError, match="make one with new_step"):
        decode(model[0], prefix, GREEDY, [0, 1], step=step)


def test_top_k_of_one_is_greedy(model, prefix):
    greedy = decode(model[0], prefix, GREEDY, [0])
    assert_close(decode(model[0], prefix, GenerationConfig(0.9, 1.0, 1), [123]), greedy)
