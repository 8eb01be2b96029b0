"""The decode step as a captured graph: the same tokens, nothing copied, nothing waited for, one launch a token."""

import copy
import gc

import pytest
import torch
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.devices.device import resolve_device
from comfyui_glm_image.pipeline.diagnostics.tiny_models import planner_config, prompt_batch
from comfyui_glm_image.pipeline.models.config import GenerationConfig
from comfyui_glm_image.pipeline.models.lora import LayerLora, apply_loras
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.models.weight_forms import round_layers
from comfyui_glm_image.pipeline.planning.controls import GridControl
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.graphs import GraphRunner
from comfyui_glm_image.pipeline.planning.prefill import prefill
from comfyui_glm_image.pipeline.planning.steps import new_step

SAMPLING = GenerationConfig(0.9, 0.75)


@pytest.fixture(scope="module")
def planner(npu):
    torch.manual_seed(0)
    planner = Planner(planner_config()).to(resolve_device(npu), torch.bfloat16).requires_grad_(False)
    planner.fuse()
    return planner


@pytest.fixture(scope="module")
def prefix(planner, npu):
    return prefill(planner, prompt_batch(), npu)


def plan(planner, prefix, seeds, sampling=SAMPLING, graphs=None, rows=1, **options):
    return decode(planner, prefix, sampling, seeds, rows=rows, run=graphs, **options)["full"]


@pytest.mark.parametrize("seeds", [[0], [3, 4, 5]])
@pytest.mark.parametrize("sampling", [SAMPLING, GenerationConfig(0.0), GenerationConfig(1.1, 0.9, 20)])
def test_captured_tokens_equal_eager_ones(planner, prefix, npu, seeds, sampling):
    graphs = GraphRunner(planner, npu)
    captured = plan(planner, prefix, seeds, sampling, graphs)
    assert graphs.reason is None
    assert graphs.replays == 6  # of 8 tokens: one comes from the prompt, one warms up
    assert torch.equal(captured, plan(planner, prefix, seeds, sampling))


@pytest.mark.parametrize("seeds", [[0], [3, 4, 5]])
@pytest.mark.parametrize("sampling", [SAMPLING, GenerationConfig(0.0), GenerationConfig(1.1, 0.9, 20)])
def test_captured_windows_equal_eager_ones_and_those_of_a_cpu(planner, npu, seeds, sampling):
    """In float32, where a CPU and the stand-in round alike."""
    planner = copy.deepcopy(planner).float()
    prefix, graphs = prefill(planner, prompt_batch(), npu), GraphRunner(planner, npu)
    captured = plan(planner, prefix, seeds, sampling, graphs, rows=3)
    assert graphs.reason is None and graphs.replays > 0
    assert torch.equal(captured, plan(planner, prefix, seeds, sampling, rows=3))
    at_home = copy.deepcopy(planner).cpu()
    assert torch.equal(captured, plan(at_home, prefill(at_home, prompt_batch(), "cpu"), seeds, sampling))


def one_by_one(graphs):
    """Passes of all rows of which only the first token is kept."""

    def run(step, k):
        known = step.known.clone()
        graphs(step, k)
        step.known.copy_(torch.minimum(known + 1, step.complete))

    return run


def test_captured_windows_in_bfloat16_equal_single_tokens_of_as_many_rows(planner, prefix, npu):
    for seeds in ([0], [1, 2]):
        windows = plan(planner, prefix, seeds, graphs=GraphRunner(planner, npu), rows=4)
        alone = plan(planner, prefix, seeds, graphs=one_by_one(GraphRunner(planner, npu)), rows=4)
        assert torch.equal(windows, alone)


def test_a_captured_window_copies_nothing_waits_for_nothing_and_launches_once(planner, prefix, npu, cann):
    graphs, step = GraphRunner(planner, npu), new_step(planner, prefix, SAMPLING, 1, rows=4)
    decode(planner, prefix, SAMPLING, [0], rows=4, step=step, run=graphs)
    step.start(prefix)
    step.first(prefix.logits)
    with torch.inference_mode(), cann.count() as seen:
        for _ in range(3):
            graphs(step, 1)
    assert (seen.host_to_device_copies, seen.device_to_host_copies, seen.synchronizations) == (0, 0, 0)
    assert (seen.replays, seen.launches) == (3, 0)


def test_a_plan_by_windows_reads_back_one_copy_a_pass_and_waits_for_no_pass_that_runs(planner, prefix, npu, cann):
    graphs, step, runs = GraphRunner(planner, npu), new_step(planner, prefix, SAMPLING, 1, rows=4), []

    def run(step, k):
        graphs(step, k)
        runs.append(k)

    decode(planner, prefix, SAMPLING, [0], rows=4, step=step, run=run)
    runs.clear()
    with cann.count() as seen:
        decode(planner, prefix, SAMPLING, [0], rows=4, step=step, run=run)
    assert seen.replays == len(runs)
    assert seen.device_to_host_copies == len(runs)
    assert runs[-1] == runs[-2] or runs[-1] < step.planned  # the last pass began before the end was known


def test_captured_tokens_by_8_bit_weights_equal_eager_ones(planner, npu):
    small = round_layers(copy.deepcopy(planner), "w8")
    prefix, graphs = prefill(small, prompt_batch(), npu), GraphRunner(small, npu)
    captured = plan(small, prefix, [0], graphs=graphs)
    assert (graphs.reason, graphs.replays) == (None, 6)
    assert torch.equal(captured, plan(small, prefix, [0]))


@pytest.mark.parametrize("rows", [1, 3])
def test_forced_and_biased_tokens_are_honoured_by_a_graph(planner, prefix, npu, rows):
    bias = torch.where(torch.arange(8) == 3, 1e4, 0.0)
    forced, mask = torch.arange(8), torch.arange(8) == 5
    controls = {"full": GridControl(forced, mask, torch.full((8,), 7), bias)}
    captured = plan(planner, prefix, [0], graphs=GraphRunner(planner, npu), rows=rows, controls=controls)
    assert captured[0, 3] == 7 and captured[0, 5] == 5
    assert torch.equal(captured, plan(planner, prefix, [0], rows=rows, controls=controls))


def test_one_step_serves_other_seeds_and_prompts_without_a_new_capture(planner, prefix, npu):
    graphs, step = GraphRunner(planner, npu), new_step(planner, prefix, SAMPLING, 1, rows=1)
    decode(planner, prefix, SAMPLING, [0], rows=1, step=step, run=graphs)
    other = prefill(planner, prompt_batch(), npu)
    again = decode(planner, other, SAMPLING, [9], rows=1, step=step, run=graphs)["full"]
    assert graphs.replays == 6 + 7
    assert torch.equal(again, plan(planner, other, [9]))


def test_a_replay_copies_nothing_waits_for_nothing_and_launches_once(planner, prefix, npu, cann):
    graphs, step = GraphRunner(planner, npu), new_step(planner, prefix, SAMPLING, 1, rows=1)
    decode(planner, prefix, SAMPLING, [0], rows=1, step=step, run=graphs)
    step.start(prefix)
    step.first(prefix.logits)
    with torch.inference_mode(), cann.count() as seen:
        for k in range(1, 8):
            graphs(step, k)
    assert (seen.host_to_device_copies, seen.device_to_host_copies, seen.synchronizations) == (0, 0, 0)
    assert (seen.replays, seen.launches) == (7, 0)


def test_forms_and_graph_cut_the_launches_of_a_token(planner, prefix, npu, cann):
    fused = kernels.registered_kernels("npu")
    step = new_step(planner, prefix, SAMPLING, 1, rows=1)
    step.start(prefix)
    counts = {}
    for name, chosen in (("plain", {}), ("fused", fused)):
        kernels.register_kernels("npu", **chosen)
        with torch.inference_mode(), cann.count() as seen:
            step.eager(1)
        counts[name] = seen.launches
    assert counts["fused"] < 0.5 * counts["plain"]


def test_released_graphs_give_their_memory_back(planner, prefix, npu):
    gc.collect()
    torch.npu.empty_cache()
    before = torch.npu.memory_reserved(npu)
    graphs, step = GraphRunner(planner, npu), new_step(planner, prefix, SAMPLING, 1, rows=1)
    decode(planner, prefix, SAMPLING, [0], rows=1, step=step, run=graphs)
    graphs.release()
    del graphs, step
    gc.collect()
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved(npu) == before


def test_a_capture_that_fails_plans_on_without_a_graph(planner, prefix, npu, monkeypatch, caplog):
    graphs = GraphRunner(planner, npu)

    def wait_for_the_device(*_):
        if torch.npu.is_current_stream_capturing():
            torch.ones(1, device=npu).item()

    hook = planner.lm_head.register_forward_hook(wait_for_the_device)
    tokens = plan(planner, prefix, [0], graphs=graphs)
    hook.remove()
    assert graphs.reason.startswith("capture failed")
    assert "planning goes on without a graph" in caplog.text
    assert torch.equal(tokens, plan(planner, prefix, [0]))


@pytest.mark.parametrize("form", [None, "w8"])
def test_loras_are_captured_with_the_layers_that_they_change(planner, npu, form):
    """In float32, where a CPU and the stand-in round alike: a plain one, and DoRA with a bias."""
    home = copy.deepcopy(planner).float().cpu()
    if form:
        round_layers(home, form)
    changes = {}
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj"):
        weight = planner.get_submodule(f"model.language_model.layers.0.{name}").weight
        up, down, bias = (torch.randn(shape) for shape in ((len(weight), 3), (3, weight.shape[1]), (len(weight),)))
        pairs = [(LayerLora(up, down), 0.5), (LayerLora(up, down, 0.2, bias.abs(), bias), 1.0)]
        changes[f"model.language_model.layers.0.{name}"] = pairs
    away, here = (apply_loras(copy.deepcopy(home).to(place), changes) for place in (npu, "cpu"))
    assert away.fuse() == here.fuse() == (form is None)
    graphs = GraphRunner(away, npu)
    captured = plan(away, prefill(away, prompt_batch(), npu), [0, 1], graphs=graphs)
    assert graphs.reason is None and graphs.replays == 6
    assert torch.equal(captured, plan(here, prefill(here, prompt_batch(), "cpu"), [0, 1]))
    assert not torch.equal(captured, plan(home, prefill(home, prompt_batch(), "cpu"), [0, 1]))
