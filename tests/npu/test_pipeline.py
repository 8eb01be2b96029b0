"""The whole pipeline on a card: equal to the CPU, split, offloaded, short of memory, and on a chip without bfloat16."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage, glm_image
from comfyui_glm_image.pipeline.devices.device import resolve_device
from comfyui_glm_image.pipeline.devices.layer_offload import offload_layers
from comfyui_glm_image.pipeline.diagnostics.tiny_models import GRID, dit_config
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED
from comfyui_glm_image.pipeline.loading.memory_needs import ON_HOST
from comfyui_glm_image.pipeline.models.transformer import Dit
from comfyui_glm_image.pipeline.models.weight_forms import W4Linear
from PIL import Image
from torch.testing import assert_close

PROMPT, HEIGHT, WIDTH, STEPS = "a 'HI' sign", 64, 96, 3
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def folder(references):
    return references("plain")[0]


@pytest.fixture(scope="module")
def on_cpu(folder):
    return GlmImage.from_pretrained(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def on_npu(folder, npu):
    return GlmImage.from_pretrained(folder, device=npu, dtype=torch.float32)


@pytest.fixture(scope="module")
def drawn(on_cpu):
    """plan, latents and picture of the CPU."""
    return draw(on_cpu)


def draw(model, images=None, seed=5, **options):
    plan = model.plan(PROMPT, HEIGHT, WIDTH, images, seed=seed, **options)
    latents = model.denoise(plan, STEPS, seed=seed)
    return plan, latents.cpu(), model.decode(latents)


def assert_same(got, expected, **close):
    assert torch.equal(got[0].prior_token_ids_d32, expected[0].prior_token_ids_d32)
    assert_close(got[1], expected[1], **(close or CLOSE))
    assert_close(got[2], expected[2], **(close or CLOSE))


def reference_picture():
    rows, columns = np.mgrid[0:70, 0:100]
    return Image.fromarray(np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8))


def test_text_to_image_equals_the_cpu(on_npu, drawn):
    assert_same(draw(on_npu), drawn)


def test_greedy_plans_and_batches_equal_the_cpu(on_npu, on_cpu):
    for options in ({"temperature": 0}, {"count": 3}):
        ours, theirs = (model.plan(PROMPT, HEIGHT, WIDTH, **options) for model in (on_npu, on_cpu))
        assert torch.equal(ours.prior_token_ids_d32, theirs.prior_token_ids_d32)


def test_image_to_image_equals_the_cpu(on_npu, on_cpu):
    images = [reference_picture(), reference_picture().rotate(90, expand=True)]
    ours, theirs = draw(on_npu, images), draw(on_cpu, images)
    for a, b in zip(ours[0].references, theirs[0].references):
        assert torch.equal(a.prior_token_ids_d32, b.prior_token_ids_d32)
    assert_same(ours, theirs)


def test_bfloat16_is_the_default_and_draws_nearly_the_same(folder, npu, drawn):
    model = GlmImage.from_pretrained(folder, device=npu)
    assert set(model.placement.dtypes.values()) == {torch.bfloat16}
    latents = model.denoise(drawn[0], STEPS, seed=5)
    assert_close(latents.cpu(), drawn[1], rtol=0.1, atol=0.1)
    assert model.decode(latents).isfinite().all()


def test_a_planner_of_8_bits_fits_in_half_and_plans_as_on_the_cpu(folder, npu):
    models = [
        GlmImage.from_pretrained(
            folder, placement=P.choose(folder, P.PlacementRequest(device, "bf16", planner_weights="w8"))
        )
        for device in ("cpu", npu)
    ]
    small, plain = (
        sum(p.nbytes for p in model.planner.model.language_model.layers.parameters())
        for model in (models[1], GlmImage.from_pretrained(folder, device=npu))
    )
    assert small < 0.6 * plain
    prefixes = []
    for model in models:
        model.plan(PROMPT, HEIGHT, WIDTH)
        prefixes.append(next(reversed(model.memory.prefixes.values()))[1].logits.cpu().float())
    assert_close(*prefixes, rtol=0.1, atol=0.1)


def test_weights_of_4_bits_draw_as_on_the_cpu(npu):
    request = {"planner_weights": "w4", "decoder_weights": "w4"}
    models = [
        GlmImage.from_pretrained("small", placement=P.choose(BUNDLED, P.PlacementRequest(device, "bf16", **request)))
        for device in ("cpu", npu)
    ]
    packed = [layer for layer in models[1].transformer.modules() if isinstance(layer, W4Linear)]
    assert packed and all(layer.weight.dtype == torch.int32 for layer in packed)
    plan = models[0].plan(PROMPT, HEIGHT, WIDTH, seed=5)
    prefixes = []
    for model in models:
        model.plan(PROMPT, HEIGHT, WIDTH, seed=5)
        prefixes.append(next(reversed(model.memory.prefixes.values()))[1].logits.cpu().float())
    assert_close(*prefixes, rtol=0.1, atol=0.3)
    ours, theirs = (model.denoise(plan, STEPS, seed=5).cpu() for model in models)
    assert (ours - theirs).abs().mean() < 0.03 * theirs.abs().mean()


def test_a_step_of_the_decoder_neither_copies_nor_waits(on_npu, drawn, cann):
    steps = on_npu.denoise_steps(drawn[0], STEPS, seed=5)
    next(steps)
    with cann.count() as seen:
        next(steps)
    assert (seen.host_to_device_copies, seen.device_to_host_copies, seen.synchronizations) == (0, 0, 0)


def devices_of(name, module):
    """Where a component's parameters are, but for those that stay in host memory."""
    return {p.device for n, p in module.named_parameters() if not n.startswith(ON_HOST.get(name, ()))}


def test_two_cards_share_the_work_and_draw_the_same(folder, npu, drawn):
    placement = P.choose(folder, P.PlacementRequest(npu, torch.float32, "npu:0", "npu:1"))
    model = GlmImage.from_pretrained(folder, placement=placement)
    assert_same(draw(model), drawn)
    where = {name: devices_of(name, module) for name, module in model.components.loaded.items()}
    assert where.pop(P.PLANNER) == {torch.device("npu:0")}
    assert set().union(*where.values()) == {torch.device("npu:1")}


def test_planner_and_decoder_take_turns_and_leave_nothing(folder, npu, drawn):
    torch.npu.empty_cache()
    before = torch.npu.memory_allocated(npu)
    request = P.PlacementRequest(npu, torch.float32, offload=P.Offload.MODEL)
    model = GlmImage.from_pretrained(folder, placement=P.choose(folder, request))
    plan = model.plan(PROMPT, HEIGHT, WIDTH, seed=5)
    held = torch.npu.memory_allocated(npu) - before
    assert held >= sum(p.nbytes for p in model.planner.parameters())
    latents = model.denoise(plan, STEPS, seed=5)
    assert P.PLANNER not in model.components.loaded
    assert_same((plan, latents.cpu(), model.decode(latents)), drawn)
    del latents
    model.release()
    assert torch.npu.memory_allocated(npu) == before


@pytest.mark.parametrize("keep", [0, 10**9])
def test_streamed_layers_draw_the_same_and_lie_in_host_memory(folder, npu, drawn, keep):
    placement = P.choose(folder, P.PlacementRequest(npu, torch.float32, offload=P.Offload.LAYERWISE))
    placement.streamed.update(dict.fromkeys(placement.streamed, keep))
    model = GlmImage.from_pretrained(folder, placement=placement)
    assert_same(draw(model), drawn)
    on_card = [p.device == npu for p in model.transformer.transformer_blocks.parameters()]
    assert all(on_card) if keep else not any(on_card)
    assert model.transformer.proj_out.weight.device == npu


def test_a_streamed_module_holds_two_layers_on_the_card_at_most(npu):
    torch.manual_seed(0)
    with torch.no_grad():
        dit = Dit(replace(dit_config(), num_layers=12)).requires_grad_(False)
        h, w = GRID
        ids, embeds = torch.zeros(1, h * w, dtype=torch.long), torch.zeros(1, 1, 48)
        inputs = (
            torch.randn(1, 16, 2 * h, 2 * w),
            embeds,
            ids,
            False,
            torch.ones(1),
            torch.ones(1, 2),
            torch.ones(1, 2),
        )
        expected = dit(*inputs)
        layers = [sum(p.nbytes for p in block.parameters()) for block in dit.transformer_blocks]
        everything = sum(p.nbytes for p in dit.parameters())
        inputs = [x.to(npu) if isinstance(x, torch.Tensor) else x for x in inputs]
        with peak(npu) as used:
            got = offload_layers(dit, npu)(*inputs)
    assert_close(got.cpu(), expected, **CLOSE)
    assert used.bytes < everything - 8 * layers[0]


class Peak:
    bytes = 0


@contextlib.contextmanager
def peak(device):
    """The most memory that the block held beyond what was there before, as torch_npu's allocator counts it."""
    found = Peak()
    before = torch.npu.memory_allocated(device)
    torch.npu.reset_peak_memory_stats(device)
    yield found
    found.bytes = torch.npu.max_memory_allocated(device) - before


@pytest.mark.parametrize(("height", "width", "count"), [(256, 256, 1), (384, 256, 2)])
def test_the_estimate_covers_what_is_used(folder, npu, height, width, count):
    request = P.PlacementRequest(npu, offload=P.Offload.MODEL, images=P.ImageBatch(height, width, count))
    placement, needs = P.plan_placement(folder, request)
    model = GlmImage.from_pretrained(folder, placement=placement)
    with peak(npu) as planning:
        plan = model.plan(PROMPT, height, width, count=count)
    model.release()
    with peak(npu) as drawing:
        latents = model.denoise(plan, 2)
        model.decode(latents, tiled=True)
    estimated = P._stage_peaks(placement, needs)[npu]
    used = {"planning": planning.bytes, "drawing": drawing.bytes}
    print(used, estimated)
    assert all(used[stage] <= estimated[stage] for stage in used)


def test_a_decode_that_runs_out_of_memory_goes_on_in_strips(on_npu, npu, monkeypatch, caplog, cann):
    latents = torch.randn(1, 16, 128, 128, generator=torch.Generator().manual_seed(0))
    needed = {}
    for tiled in (True, False):
        torch.npu.empty_cache()
        torch.npu.reset_peak_memory_stats(npu)
        whole = on_npu.decode(latents, tiled=tiled)
        needed[tiled] = torch.npu.max_memory_allocated(npu) >> 20, torch.npu.max_memory_reserved(npu) >> 20
    torch.npu.empty_cache()
    limit = needed[False][0] - 2  # less than whole images take, more than strips reserve
    assert limit > needed[True][1]
    monkeypatch.setattr(glm_image, "decode_nbytes", lambda *_: 0)  # an estimate too low
    monkeypatch.setenv("FAKE_CANN_MEMORY_MB", str(limit))
    again = on_npu.decode(latents)
    assert "out of memory on npu:0; going on in tiles" in caplog.text
    assert_close(again, whole, **CLOSE)


CODE_310P = """
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.devices import kernels, npu_kernels
folder = {folder!r}
model = GlmImage.from_pretrained(folder, device="npu")
print(*(str(dtype) for dtype in model.placement.dtypes.values()))
plan = model.plan("a 'HI' sign", 64, 96, seed=5)
latents = model.denoise(plan, 3, seed=5)
print(kernels.registered_kernels("npu") == npu_kernels.FALLBACKS, model.memory.graphs.reason)
reference = GlmImage.from_pretrained(folder, device="cpu", dtype=torch.float32)
print(float((latents.cpu() - reference.denoise(plan, 3, seed=5)).abs().max()))
with torch.no_grad():
    for parameter in model.transformer.proj_out.parameters(): parameter.fill_(6e4)
try: model.denoise(plan, 3)
except Exception as error: print(error)
"""


def test_310p_draws_in_float16_without_bfloat16_and_tells_of_overflow(folder, run_python):
    """Strict mode refuses every operator on bfloat16; convolutions of this chip are beyond the stand-in."""
    done = run_python(CODE_310P.format(folder=str(folder)), fake_cann_soc="Ascend310P3")
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert lines[0] == "torch.float16 torch.float16 torch.float16 torch.float32"
    assert lines[1] == "True graph capture is not known to work on 310P"
    assert float(lines[2]) < 0.05
    assert "decoder: float16 overflowed" in lines[3]


def test_every_component_is_where_its_placement_says(on_npu, npu):
    for name, module in on_npu.components.loaded.items():
        assert devices_of(name, module) == {on_npu.placement.devices[name]} == {resolve_device(npu)}
