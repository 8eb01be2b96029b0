"""Several tokens a pass: the same plans as one by one, in fewer passes, whatever is drafted."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import GenerationConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.models.weight_forms import pack, round_layers
from comfyui_glm_image.pipeline.plan import MAX_PLAN_ROWS
from comfyui_glm_image.pipeline.planning import rows, steps
from comfyui_glm_image.pipeline.planning.controls import GridControl
from comfyui_glm_image.pipeline.planning.decode_step import DecodeStep
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from comfyui_glm_image.pipeline.planning.rows import AGAIN, TRIALS, MeasuredRows, default_rows
from comfyui_glm_image.pipeline.planning.sampling import choose_in_nucleus, warp
from comfyui_glm_image.pipeline.planning.steps import fits, new_step, plan_rows
from comfyui_glm_image.pipeline.planning.window_step import WindowStep, above, enlarged, shifting_rows

GRID, PREVIEW = (4, 9), (2, 3)
TOTAL = 42
SAMPLED = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
SAMPLINGS = {
    "release": SAMPLED,
    "greedy": replace(SAMPLED, temperature=0.0),
    "top_p 1": replace(SAMPLED, top_p=1.0),
    "top_k": replace(SAMPLED, top_k=7),
}
PROMPTS = ["one", "another, longer one"]


@pytest.fixture(scope="module")
def model(references):
    folder, _ = references("wide")
    path = folder / "vision_language_encoder"
    config = VisionLanguageConfig.from_json(path / "config.json")
    planner = load_module(Planner, config, path, "cpu", torch.float32)
    return planner, PromptEncoder(folder / "processor", config)


@pytest.fixture(scope="module", params=["modules", "fast path"])
def planner(request, model):
    planner = copy.deepcopy(model[0])
    if request.param == "fast path":
        planner.fuse()
    return planner


@pytest.fixture(scope="module")
def half(model):
    planner = copy.deepcopy(model[0]).bfloat16()
    planner.fuse()
    return planner


def prefix_of(planner, model, *prompts, preview=PREVIEW):
    batch = collate([model[1].encode(p, GRID, preview) for p in prompts], GRID, preview, model[1].config)
    return prefill(planner, batch, "cpu")


def controls():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 36, generator=generator) < 0.3
    ids = torch.randint(100, (2, 36), generator=generator)
    bias = torch.where(torch.rand(36, generator=generator) < 0.5, 5.0, 0.0)
    return {
        "preview": GridControl(biased=ids[0, :6], bias=bias[:6]),
        "full": GridControl(ids, mask, ids[1], bias),
    }


def joined(tokens):
    return torch.cat(list(tokens.values()), dim=1)


def captured(step, k):
    step.captured(step.bucket(k))


@pytest.mark.parametrize("given", [None, controls()], ids=["free", "controlled"])
@pytest.mark.parametrize("rows", [2, 5, 16, 64])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_windows_plan_what_single_tokens_plan(planner, model, sampling, rows, given):
    """Two padded prompts that advance on their own."""
    prefix = prefix_of(planner, model, *PROMPTS)
    assert prefix.batch.padded
    wanted = decode(planner, prefix, sampling, [5, 6], rows=1, controls=given)
    for run in (None, captured):
        got = decode(planner, prefix, sampling, [5, 6], rows=rows, controls=given, run=run)
        assert torch.equal(joined(got), joined(wanted))


@pytest.mark.parametrize("preview", [PREVIEW, None])
@pytest.mark.parametrize("seed", range(5))
def test_chosen_rows_plan_what_single_tokens_plan(planner, model, seed, preview):
    prefix = prefix_of(planner, model, "one", preview=preview)
    wanted = decode(planner, prefix, SAMPLED, [seed], rows=1)
    assert torch.equal(joined(decode(planner, prefix, SAMPLED, [seed])), joined(wanted))


def one_by_one(step, k):
    """A pass of all rows of which only the first token is kept; what was drafted stays to be said again."""
    known = step.known.clone()
    captured(step, k)
    step.known.copy_(torch.minimum(known + 1, step.complete))


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("weights", ["bf16", "w8", "w4"])
def test_in_bfloat16_windows_equal_single_tokens_of_as_many_rows_bit_for_bit(half, model, weights, rows):
    planner = half if weights == "bf16" else pack(round_layers(copy.deepcopy(half), weights), torch.device("cpu"))
    prefix = prefix_of(planner, model, *PROMPTS)
    for seeds in ([0, 1], [2, 3], [4, 5]):
        windows, keys = [], []
        for run in (None, one_by_one):
            step = new_step(planner, prefix, SAMPLINGS["top_p 1"], 2, rows)
            assert step.rows == rows
            windows.append(joined(decode(planner, prefix, SAMPLINGS["top_p 1"], seeds, rows=rows, step=step, run=run)))
            keys.append(step.cache.slots[..., : prefix.length + TOTAL - 1, :])
        assert torch.equal(*windows)
        assert torch.equal(*keys)


def test_drafts_do_not_reach_the_plan(half, model):
    prefix = prefix_of(half, model, "one")
    generator = torch.Generator().manual_seed(0)

    def badly_drafted(step, k):
        step.eager(k)
        noise = torch.randint(100, step.tokens.shape, generator=generator)
        step.tokens.copy_(torch.where(torch.arange(step.tokens.shape[1]) < step.known, step.tokens, noise))

    wanted = decode(half, prefix, SAMPLED, [3], rows=8)
    assert torch.equal(joined(decode(half, prefix, SAMPLED, [3], rows=8, run=badly_drafted)), joined(wanted))


def passes(planner, prefix, sampling, seeds, **options):
    count = 0

    def run(step, k):
        nonlocal count
        count += 1
        step.eager(k)

    decode(planner, prefix, sampling, seeds, run=run, **options)
    return count


def test_a_forced_grid_takes_as_many_tokens_a_pass_as_there_are_rows(planner, model):
    prefix = prefix_of(planner, model, "one", preview=None)
    forced = GridControl(torch.arange(36) % 50, torch.ones(36, dtype=torch.bool))
    given = {"full": forced}
    assert passes(planner, prefix, SAMPLED, [0], rows=5, controls=given) == 7
    assert passes(planner, prefix, SAMPLED, [0], rows=16, controls=given) == math.ceil(35 / 16)


def test_progress_comes_after_every_pass_with_the_tokens_known(planner, model):
    prefix, reports = prefix_of(planner, model, *PROMPTS), []
    tokens = decode(planner, prefix, SAMPLED, [1, 2], rows=4, progress=lambda *a, **info: reports.append((a, info)))
    done = [a[0] for a, _ in reports]
    assert done == sorted(done) and done[-1] == TOTAL and max(b - a for a, b in zip([1, *done], done)) <= 4
    for (count, total), info in reports:
        assert total == TOTAL and info["grid"] == ("preview" if count <= 6 else "full")
        assert torch.equal(info["tokens"], joined(tokens)[:, :count])


def test_an_interruption_ends_within_a_pass_and_leaves_nothing_behind(planner, model):
    prefix, wanted = prefix_of(planner, model, "one"), None
    step = new_step(planner, prefix, SAMPLED, 1, 4)
    wanted = decode(planner, prefix, SAMPLED, [1], rows=4, step=step)

    class Stop(BaseException):
        pass

    def stop(done, total, **_):
        if done > 10:
            raise Stop

    with pytest.raises(Stop):
        decode(planner, prefix, SAMPLED, [9], rows=4, step=step, progress=stop)
    assert torch.equal(joined(decode(planner, prefix, SAMPLED, [1], rows=4, step=step)), joined(wanted))


def test_one_step_serves_steered_and_free_plans_in_turn(planner, model):
    prefix = prefix_of(planner, model, "one")
    step = new_step(planner, prefix, SAMPLED, 2, 4)
    free = decode(planner, prefix, SAMPLED, [1, 2], rows=4, step=step)
    steered = decode(planner, prefix, SAMPLED, [1, 2], rows=4, step=step, controls=controls())
    assert not torch.equal(joined(steered), joined(free))
    assert torch.equal(joined(decode(planner, prefix, SAMPLED, [1, 2], rows=4, step=step)), joined(free))


def test_rows_of_a_window_do_not_shift_on_this_device(half, model):
    prefix = prefix_of(half, model, *PROMPTS)
    assert shifting_rows(new_step(half, prefix, SAMPLED, 2, 8), prefix) is None


@pytest.mark.parametrize(("name", "message"), [("place", "begins 1 tokens later"), ("drafts", "drafts behind it")])
def test_where_rows_shift_one_token_a_pass_is_planned_and_the_log_says_why(
    half, model, caplog, monkeypatch, name, message
):
    planner, logits = copy.deepcopy(half), WindowStep.logits

    def shifting(step, ids, at, read):
        right = logits(step, ids, at, read)
        if name == "place":
            return right + torch.arange(right.shape[1])[:, None]
        return right + ids.sum()  # as if each row saw all of them

    monkeypatch.setattr(WindowStep, "logits", shifting)
    prefix = prefix_of(planner, model, "one")
    step = new_step(planner, prefix, SAMPLED, 1, 8)
    assert isinstance(step, DecodeStep) and plan_rows(step) == 1
    assert message in caplog.text


def test_noise_that_needs_too_much_memory_is_not_kept(planner, model, caplog, monkeypatch):
    monkeypatch.setattr(steps, "NOISE_BYTES", 1000)
    step = new_step(planner, prefix_of(planner, model, "one"), SAMPLED, 1, 8)
    assert isinstance(step, DecodeStep)
    assert "noise of all tokens would take" in caplog.text


def test_a_step_fits_plans_of_its_own_rows_and_in_windows_of_its_own_length(half, model):
    prefix, longer = prefix_of(half, model, "one"), prefix_of(half, model, "one " * 300)
    step = new_step(half, prefix, SAMPLED, 1, 8)
    assert fits(step, prefix, SAMPLED, 1, 8)
    assert not fits(step, prefix, SAMPLED, 1, 4)
    assert not fits(step, prefix, SAMPLED, 1)
    roomy = new_step(half, longer, SAMPLED, 1, 8)
    assert not fits(roomy, prefix, SAMPLED, 1, 8)  # it would read another number of slots, and round otherwise


def test_plans_know_the_rows_that_they_depend_on(planner, half, model):
    assert plan_rows(new_step(half, prefix_of(half, model, "one"), SAMPLED, 1, 8)) == 8
    assert plan_rows(new_step(planner, prefix_of(planner, model, "one"), SAMPLED, 1, 8)) == 1


@pytest.mark.parametrize("rows", [0, -1, MAX_PLAN_ROWS + 1, 2.0, True])
def test_bad_rows_are_refused(planner, model, rows):
    with pytest.raises(InputError, match="plan_rows .* is not accepted"):
        decode(planner, prefix_of(planner, model, "one"), SAMPLED, [0], rows=rows)


def test_default_rows_fill_a_tile_and_leave_room_for_batches(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [default_rows(cuda, torch.bfloat16, batch) for batch in (1, 4, 5, 8, 32, 64)] == [16, 16, 12, 8, 2, 1]
    assert default_rows(cpu, torch.float32, 3) == 16
    assert default_rows(cpu, torch.float16, 1) == 1
    for multiplies, wanted in ((True, [8, 8, 4, 1]), (False, [1, 1, 1, 1])):
        monkeypatch.setattr(rows, "multiplies_bfloat16", lambda answer=multiplies: answer)
        assert [default_rows(cpu, torch.bfloat16, batch) for batch in (1, 2, 4, 16)] == wanted


def test_measured_rows_settle_where_tokens_a_second_are_most():
    """Passes that gain up to 6 tokens; a row more costs more than the last."""
    seconds = {1: 1.0, 4: 1.2, 8: 1.5, 16: 3.0}
    measured, seen = MeasuredRows(), []
    for _ in range(sum(TRIALS.values()) + 2 * AGAIN):
        rows = measured.next()
        seen.append(rows)
        measured.note(rows, seconds[rows], [min(rows, 6)])
    settled = seen[sum(TRIALS.values()) :]
    assert settled.count(8) == 2 * AGAIN - 2 and settled.count(16) == 2


def test_measured_rows_settle_on_one_where_drafts_do_not_pay():
    measured = MeasuredRows()
    for _ in range(sum(TRIALS.values())):
        rows = measured.next()
        measured.note(rows, 1.0 * rows, [min(rows, 2), 1])
    assert measured.best() == 1


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("codebook", [3, 640, 4096])
def test_the_nucleus_without_a_sort_chooses_what_the_sort_chooses(scale, codebook):
    """Logits of bfloat16, which has many ties, and of float32."""
    generator = torch.Generator().manual_seed(codebook)
    for top_p in (1e-6, 0.31, 0.75, 0.99):
        sampling = replace(SAMPLED, top_p=top_p)
        logits = torch.randn(12, codebook, generator=generator) * scale
        noise = -torch.rand(12, codebook, generator=generator).clamp(min=1e-9).log().neg().log()
        for given in (logits, logits.bfloat16().float()):
            wanted = (warp(given, sampling) + noise).argmax(-1)
            assert torch.equal(choose_in_nucleus(given, noise, sampling), wanted)


def test_drafts_come_from_the_nearest_token_above_that_is_at_hand():
    table = above([(3, 4)], 12, rows=7)
    assert table[0].tolist() == [0, 0, 0, 0, 0, 0]  # nothing above: the last; below it, itself
    assert table[5].tolist() == [2, 3, 4, 5, 2, 3]


def test_drafts_of_a_full_grid_come_from_the_preview_where_nothing_is_above():
    assert enlarged((2, 3), (4, 6)).tolist() == [0, 0, 1, 1, 2, 2] * 2 + [3, 3, 4, 4, 5, 5] * 2
    table = above([(2, 3), (4, 6)], 30, rows=5)
    assert table[5].tolist() == [0, 0, 1, 1]
    assert table[11].tolist() == [6, 7, 8, 9]
