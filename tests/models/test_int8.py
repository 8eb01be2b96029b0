"""8-bit weights of the planner: how they are rounded, that they are half the memory, and how near plans stay."""

import copy

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.pipeline.models.int8 import QUANTISED, Int8Linear, quantise
from comfyui_glm_image.pipeline.models.planner_cpu import CpuDecode
from comfyui_glm_image.pipeline.planning.prefill import prefill
from torch import nn
from torch.testing import assert_close

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(out, width, dtype=torch.float32, bias=True):
    layer = nn.Linear(width, out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(out, width))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_within_half_a_step(dtype):
    layer = linear(7, 96, dtype)
    small = Int8Linear(layer)
    step = small.scale.double()[:, None]
    error = (small.weight.double() * step - layer.weight.double()).abs()
    largest = layer.weight.double().abs().amax(1, keepdim=True)
    assert (error <= step / 2 + largest * torch.finfo(dtype).eps).all()  # the scale itself is rounded to the dtype
    assert small.scale.dtype == dtype
    assert small.weight.dtype == torch.int8


@pytest.mark.parametrize("rows", [(1, 1), (3, 2), (2, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_its_rounded_weights(rows, dtype, bias):
    layer, x = Int8Linear(linear(48, 96, dtype, bias)), draw(*rows, 96, seed=1).to(dtype)
    wanted = x.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    wanted = wanted if layer.bias is None else wanted + layer.bias.double()
    got = layer(x)
    assert got.dtype == dtype
    assert_close(got.double(), wanted, atol=8 * wanted.abs().max().item() * torch.finfo(dtype).eps, rtol=0)


def test_rows_of_zeros_stay_zeros():
    layer = linear(4, 8, bias=False)
    layer.weight[1] = 0
    out = Int8Linear(layer)(draw(1, 8))
    assert out.isfinite().all()
    assert out[0, 1] == 0


@pytest.fixture(scope="module")
def models():
    """The small checkpoint's planner as it is and in 8 bits, both as `GlmImage` opens them."""
    plain = GlmImage.from_pretrained(SMALL, device="cpu")
    placement = P.choose(SMALL, P.PlacementRequest("cpu", planner_int8=True))
    return plain, GlmImage.from_pretrained(SMALL, placement=placement)


def test_the_layers_and_the_head_are_stored_in_8_bits_and_nothing_else(models):
    plain, small = models
    stored = {key for key, tensor in small.planner.state_dict().items() if tensor.dtype == torch.int8}
    assert stored == {key for key in plain.planner.state_dict() if QUANTISED.fullmatch(key)}
    layers = plain.configs[P.PLANNER].text_config.num_hidden_layers
    assert len(stored) == 6 * layers + 1
    assert not CpuDecode.suits(small.planner, CPU)


def prefix_of(model, text):
    model.plan(text, 128, 128, seed=3)
    return next(reversed(model.memory.prefixes.values()))[1]


def test_the_trained_planners_choice_stays_near(models):
    """The divergence between both distributions of a plan's first token."""
    for text in ("a red sign that says 'OPEN'", "a blue poster with 'HELLO' at the top", "a green card, 'GO 7'"):
        exact, rounded = (prefix_of(model, text).logits.log_softmax(-1) for model in models)
        divergence = (exact.exp() * (exact - rounded)).sum(-1)
        assert 0 < divergence.item() < 0.01


def test_eight_bits_count_in_the_estimate_where_they_are():
    model = P.CheckpointSizes.of(SMALL)
    requests = [P.PlacementRequest("cpu", "bf16", planner_int8=on) for on in (False, True)]
    (_, whole), (placement, small) = (P.plan_placement(model, request) for request in requests)
    saved = sum(n for key, n in model.numbers[P.PLANNER].items() if QUANTISED.fullmatch(key))
    assert whole.weights[P.PLANNER] - small.weights[P.PLANNER] == saved > 0
    assert whole.weights[P.DECODER] == small.weights[P.DECODER]
    assert "int8 weights" in P.describe(placement, small)


def test_the_releases_planner_shrinks_from_19_to_11_gib():
    requests = [P.PlacementRequest("cpu", "bf16", planner_int8=on) for on in (False, True)]
    sizes = P.CheckpointSizes.of_release()
    (_, whole), (_, small) = (P.plan_placement(sizes, request) for request in requests)
    assert [round(needs.weights[P.PLANNER] / P.GIB) for needs in (whole, small)] == [19, 11]
    assert small.layer[P.PLANNER] < 0.6 * whole.layer[P.PLANNER]


def test_quantising_a_fused_planner_forgets_the_joined_weights(models):
    plain, small = models
    prefix = prefix_of(small, "a yellow label 'TEA'")
    assert plain.planner.model.language_model.layers[0].self_attn.fused is not None
    rounded = prefill(quantise(copy.deepcopy(plain.planner)), prefix.batch, "cpu")
    assert_close(rounded.logits, prefix.logits)


def test_another_form_of_the_product_is_used_where_one_is_registered():
    layer = Int8Linear(linear(4, 8))
    kernels.register_kernels("cpu", int8_linear=lambda x, weight, scale, bias: x[..., :1] * 0 + 5)
    try:
        assert layer(draw(2, 8)).tolist() == [[5], [5]]
    finally:
        kernels.register_kernels("cpu")
