"""The benchmark's arithmetic and structure; nothing here depends on how fast the machine is."""

import argparse
import json

import pytest
import torch
from comfyui_glm_image.cli import bench
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.benchmark import run
from comfyui_glm_image.pipeline.benchmark import tradeoffs as bench_tradeoffs
from comfyui_glm_image.pipeline.benchmark.case import Bench, Case
from comfyui_glm_image.pipeline.benchmark.models import CONFIGURATIONS, RandomModels
from comfyui_glm_image.pipeline.benchmark.planner_stages import first_tokens, prompt_batch
from comfyui_glm_image.pipeline.benchmark.run import open_bench
from comfyui_glm_image.pipeline.benchmark.stages import STAGES
from comfyui_glm_image.pipeline.benchmark.timing import Ceilings, Sample, count_flops, interleave, time_call
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.glm_image import GlmImage
from comfyui_glm_image.pipeline.loading.checkpoint import COMPONENTS, PLANNER
from comfyui_glm_image.tests.conftest import ROOT

CPU = torch.device("cpu")


def arguments(*given):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.request_of(parser.parse_args(given))


def test_the_slower_of_reading_and_computing_bounds_a_stage():
    ceilings = Ceilings(copy=100.0, matrix=1000.0)
    assert ceilings.seconds(flops=2000, nbytes=100) == 2 and ceilings.bound(2000, 100) == "matrix"
    assert ceilings.seconds(flops=1000, nbytes=300) == 3 and ceilings.bound(1000, 300) == "memory"


def test_median_and_spread():
    sample = Sample((1.0, 2.0, 3.0, 4.0, 9.0))
    assert sample.median == 3.0 and sample.fastest == 1.0 and sample.spread == pytest.approx(2 / 3)
    assert Sample((1.0, 5.0)).spread == 0


def test_a_call_may_take_its_own_time_and_calls_alternate():
    assert time_call(lambda: 0.25, CPU) == 0.25
    order = []
    interleave([lambda: order.append("a"), lambda: order.append("b")], CPU, repeats=3, limit=60)
    assert order == ["a", "b"] * 3


def test_counted_operations_are_those_of_the_products():
    layer = torch.nn.Linear(8, 16, device="meta")
    assert count_flops(lambda: layer(torch.zeros(3, 8, device="meta"))) == 2 * 3 * 8 * 16


def test_the_third_configuration_has_a_planner_of_about_a_third_of_a_billion():
    dtypes = dict.fromkeys(COMPONENTS, torch.float32)
    models = RandomModels(CONFIGURATIONS["third"], torch.device("meta"), dtypes)
    language = models.planner.model.language_model
    assert 0.25e9 < sum(p.numel() for p in language.parameters()) < 0.35e9


def test_a_limited_plan_keeps_prompt_and_positions():
    batch = prompt_batch(CONFIGURATIONS["third"][PLANNER], Case(256, 256, 2, 16))
    short = first_tokens(batch, 10)
    assert short.grids == ((1, 10),) and torch.equal(short.decode_positions, batch.decode_positions[:, :, :10])
    assert first_tokens(batch, None) is batch


@pytest.fixture(scope="module")
def built(references):
    model = GlmImage.from_pretrained(references("plain")[0], device="cpu", dtype=torch.float32)
    return Bench(model, CPU, model.placement.dtypes)


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_every_stage_runs_with_its_peer(built, name):
    stage = STAGES[name].make(built, Case(64, 64, 1, 16, 4))
    assert stage.amount > 0 and stage.flops > 0 and stage.nbytes > 0
    assert stage.call()() is not None
    if stage.peer:
        stage.peer()()


def test_a_token_by_8_bit_weights_reads_half_and_computes_as_much(references):
    folder, case = references("plain")[0], Case(64, 64, 1, 16, 4)
    stages = []
    for given in ([], ["--planner-int8"]):
        made, _ = open_bench(arguments("--model", str(folder), "--device", "cpu", "--dtype", "bf16", *given))
        stages.append(STAGES["planner decode"].make(made, case))
    plain, small = stages
    assert small.flops == plain.flops
    assert 0.5 < small.nbytes / plain.nbytes < 0.8
    assert small.call()()["full"].shape == (1, 4)


def test_the_command_ends_with_json(references, capsys):
    folder = str(references("plain")[0])
    given = [
        "--model",
        folder,
        "--device",
        "cpu",
        "--sizes",
        "64",
        "--tokens",
        "4",
        "--repeats",
        "1",
        "--stages",
        "vae",
    ]
    assert main(["bench", *given]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r["stage"] for r in report["results"]] == ["vae encode", "vae decode", "vae strips"]
    assert report["copy_bytes_per_second"] > 0 and all(
        r["rate"] > 0 and 0 < r["fastest"] <= r["seconds"] for r in report["results"]
    )


def test_plans_are_counted_compared_and_timed_beside_another_build(capsys):
    """The other build is this one."""
    given = ["--plans", "1", "--threads", "1", "--samplings", "greedy", "--plan-rows", "8", "--before", str(ROOT)]
    assert main(["bench", "--device", "cpu", "--dtype", "fp32", *given]) == 0
    (plans,) = json.loads(capsys.readouterr().out.splitlines()[-1])["plans"]
    assert (plans["rows"], plans["plans"], plans["equal"]) == (8, 1, 1)
    assert 1 < plans["tokens_a_pass"] <= 8 and plans["passes"] >= (plans["tokens"] - 1) / 8
    assert plans["before"] > 0 and plans["single"] > 0 and plans["peer"] is None


def test_plans_in_bfloat16_equal_single_tokens_of_as_many_rows(capsys):
    given = ["--plans", "1", "--threads", "1", "--samplings", "top_p 1", "--plan-rows", "16", "--dtype", "bf16"]
    assert main(["bench", "--device", "cpu", *given]) == 0
    (plans,) = json.loads(capsys.readouterr().out.splitlines()[-1])["plans"]
    assert plans["equal"] == 1 and plans["before"] is None


def test_growth_goes_through_all_tokens_and_sizes():
    work = arguments("--growth", "--sizes", "64,96x128").work()
    planned = [case.tokens for name, case in work if name == "planner decode"]
    assert planned == sorted(set(planned)) and len(planned) > 3
    assert [case.size for name, case in work if name == "vae decode"] == ["64x64", "96x128"]
    assert {name for name, _ in work} == {"planner decode", "decoder step", "vae decode"}
    decoder = arguments("--growth", "--stages", "decoder").work()
    assert {name for name, _ in decoder} == {"decoder step"} and len(decoder) > 3


def test_every_plan_of_the_growth_is_as_long_as_it_says(built):
    for name, case in arguments("--growth", "--stages", "planner").work():
        assert STAGES[name].make(built, case).amount == case.tokens - 1


def test_tradeoffs_are_drawn_and_compared_with_the_exact_picture(references, capsys, monkeypatch):
    folder = str(references("plain")[0])
    monkeypatch.setattr(bench_tradeoffs, "PROMPTS", ("a 'HI' sign", "a cat"))
    given = ["--model", folder, "--device", "cpu", "--sizes", "64x32", "--steps", "4", "--repeats", "1", "--tradeoffs"]
    assert main(["bench", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    exact, *others = json.loads(lines[-1])["tradeoffs"]
    assert exact["ratio"] == 1 and exact["psnr"] is None and exact["pictures"] == 4 and exact["size"] == "64x32"
    by_name = {other["setting"]: other for other in others}
    assert by_name["guidance 0 to 0.5"]["worst"] <= by_name["guidance 0 to 0.5"]["psnr"] < 100
    assert by_name["exact, other noise"]["psnr"] < by_name["guidance 0.1 to 0.8"]["psnr"]
    assert any("64x32" in line and "step cache 0.1" in line and "x" in line for line in lines)


def test_decibels():
    assert bench_tradeoffs.psnr(0.01) == pytest.approx(20) and bench_tradeoffs.psnr(0.0) is None


BAD = [
    (["--tradeoffs", "--config", "third", "--peer"], "--tradeoffs does not go with --config, --peer"),
    (["--growth", "--stages", "glyph"], "there are planner decode, decoder step, vae decode"),
    (["--growth", "--tokens", "8"], "--growth does not go with --tokens"),
    (["--planner-int8", "--peer"], "leave --peer or the form"),
    (["--steps", "8"], "--steps goes with --tradeoffs only"),
    (["--tradeoffs", "--steps", "0"], "--steps 0 is not accepted"),
    (["--sizes", "100"], "not a multiple of 32"),
    (["--tokens", "1"], "--tokens 1 is not accepted"),
    (["--repeats", "0"], "--repeats 0 is not accepted"),
    (["--stages", "dit"], "no stage begins with 'dit'"),
    (["--plan-rows", "8"], "--plan-rows goes with --plans only"),
    (["--plans", "1", "--plan-rows", "65"], "plan_rows 65 is not accepted"),
    (["--plans", "1", "--samplings", "best"], "sampling 'best' is not known"),
    (["--plans", "1", "--stages", "planner"], "--plans does not go with --stages"),
]


@pytest.mark.parametrize("given, message", BAD)
def test_what_cannot_be_measured_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        arguments(*given)


def test_figures_name_the_device_by_its_vendors_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H200 ({device})")
    assert run.device_name(torch.device("cuda:0")) == "NVIDIA H200 (cuda:0)"
    assert run.device_name(CPU).endswith("cores")
