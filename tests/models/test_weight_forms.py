"""Weights of 8 and 4 bits: how they are rounded, which layers are, how products agree, and how near results stay."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.devices import fbgemm_products, kernels, quantised_products
from comfyui_glm_image.pipeline.devices.quantised_products import check_form, slow_reason, widened_int4
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.pipeline.models.planner_cpu import CpuDecode
from comfyui_glm_image.pipeline.models.weight_forms import (
    FORMS,
    LINEARS,
    adopt,
    forms_of,
    layer_form,
    pack,
    round_layers,
    rounded,
    warn_if_slow,
)
from torch import nn
from torch.testing import assert_close

CPU = torch.device("cpu")
needs_fbgemm = pytest.mark.skipif(not fbgemm_products.available(), reason="torch multiplies by FBGEMM on x86 alone")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(out, width, dtype=torch.float32, bias=True):
    layer = nn.Linear(width, out, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(out, width))
    return layer.requires_grad_(False)


def small(layer, form):
    """A layer in a form, as rounding a module that holds it gives it; its name is one that has 4 bits in w4."""
    module = nn.Module()
    module.transformer_blocks = nn.ModuleList([nn.Module()])
    module.transformer_blocks[0].ff = nn.ModuleList([layer])
    return round_layers(module, form).transformer_blocks[0].ff[0]


def numbers(layer):
    """What a layer's codes stand for, in float64."""
    if layer.form == "w8":
        return layer.weight.double() * layer.weight_scale.double()
    return widened_int4(layer.weight, layer.weight_scale.double(), layer.weight_zero.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_of_8_bits_is_within_half_a_step(dtype):
    layer = linear(7, 96, dtype)
    eight = small(layer, "w8")
    step = eight.weight_scale.double()
    error = (numbers(eight) - layer.weight.double()).abs()
    largest = layer.weight.double().abs().amax(1, keepdim=True)
    assert (error <= step / 2 + largest * 2.0**-8).all()  # the scale itself is a number of bfloat16
    assert eight.weight_scale.dtype == dtype and eight.weight.dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_of_4_bits_is_within_half_a_step_of_its_group(dtype):
    layer = linear(7, 96, dtype)
    four = small(layer, "w4")
    step = four.weight_scale.double().repeat_interleave(32, dim=1)
    error = (numbers(four) - layer.weight.double()).abs()
    largest = layer.weight.double().abs().view(7, 3, 32).amax(2).repeat_interleave(32, dim=1)
    assert (error <= step / 2 + 2 * largest * 2.0**-8).all()  # scale and zero are numbers of bfloat16
    assert four.weight.shape == (7, 48) and four.weight.dtype == torch.uint8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [(1, 1), (3, 2), (2, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_the_numbers_its_codes_stand_for(form, rows, dtype, bias):
    layer, x = small(linear(48, 96, dtype, bias), form), draw(*rows, 96, seed=1).to(dtype)
    wanted = x.double() @ numbers(layer).T
    wanted = wanted if layer.bias is None else wanted + layer.bias.double()
    for ready in (layer, pack(nn.Sequential(copy.deepcopy(layer)), CPU)):
        got = ready(x)
        assert got.dtype == dtype
        step = torch.finfo(dtype).eps
        if ready is not layer:  # a CPU's own product of 8 bits keeps 20 bits of its input, that of 4 bits is bfloat16's
            step = max(step, {"w8": 2.0**-22, "w4": 2.0**-8}[form])
        assert_close(got.double(), wanted, atol=8 * wanted.abs().max().item() * step, rtol=0)


@needs_fbgemm
def test_the_cpus_own_product_of_8_bits_is_exact_for_outliers_zeros_and_the_smallest_code():
    layer = small(linear(48, 96, bias=False), "w8")
    layer.weight[0] = -128  # which files of others may have: all products of a row with it are the largest there are
    x = draw(5, 96)
    x[0], x[1], x[2, 3], x[3] = 0, 1e-35, 1e4, x[3].sign()
    wanted = x.double() @ numbers(layer).T
    before = layer.weight.clone()
    got = pack(nn.Sequential(layer), CPU)(x)
    assert not got[0].any()
    errors = (got.double() - wanted).abs().amax(1) / wanted.abs().amax(1).clamp(min=1e-30)
    assert errors[2:].max() < 4e-6  # the digits keep 20 bits
    assert torch.equal(fbgemm_products.unpack(layer.packed), before) and not layer.weight.numel()


@needs_fbgemm
@torch.no_grad()
def test_a_planner_in_8_bits_takes_the_cpus_fast_path_and_plans_as_before(opened, plans):
    few, slow = opened("w8").planner, round_layers(copy.deepcopy(opened("full").planner), "w8")
    assert CpuDecode.suits(few, CPU) and not CpuDecode.suits(slow, CPU)
    batch, tokens = plans[0]
    found = []
    for planner in (few, slow):
        length = batch.ids.shape[1]
        cache, tables = planner.new_cache(1, length + 2, CPU), planner.rope_tables(batch.positions)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        planner(batch.ids, tables, mask, cache, 0, length)
        after = planner.rope_tables(batch.decode_positions)
        if planner is few:
            found.append(CpuDecode(planner, cache, after)(tokens[:, 0], 0, None, length))
        else:
            one = tuple(table[:, :, :1] for table in after)
            found.append(planner(tokens[:, :1], one, None, cache, length, length + 1))
    assert_close(*found, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpus_own_product_of_4_bits_is_used_wherever_it_loses_nothing_of_scales(dtype):
    layer = small(linear(48, 96, dtype), "w4")
    assert pack(nn.Sequential(copy.deepcopy(layer)), CPU)[0].weight_zero is None
    layer.weight_zero += 1e-3  # no longer numbers of bfloat16
    assert (pack(nn.Sequential(layer), CPU)[0].weight_zero is None) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_stay_zeros(form):
    layer = linear(4, 32, bias=False)
    layer.weight[1] = 0
    out = small(layer, form)(draw(1, 32))
    assert out.isfinite().all()
    assert out[0, 1] == 0


def test_rounding_in_any_dtype_gives_the_same_codes():
    weight = draw(8, 64).bfloat16()
    for form in FORMS:
        one, other = rounded(weight, form), rounded(weight.float(), form)
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name])
            if tensor.is_floating_point():  # nothing is lost where a layer computes in bfloat16
                assert torch.equal(tensor.bfloat16().float(), tensor)


def test_layers_that_groups_do_not_fill_have_8_bits():
    name = "model.language_model.layers.3.mlp.down_proj"
    assert (layer_form("w4", name, 320), layer_form("w4", name, 328), layer_form(None, name, 320)) == ("w4", "w8", None)


def test_adopted_layers_hold_what_rounding_makes():
    for form in FORMS:
        names = {"0": form}
        module = adopt(nn.Sequential(linear(48, 96)), names)
        shapes = {f"0.{name}": tensor.shape for name, tensor in rounded(draw(48, 96), form).items()}
        assert {key: t.shape for key, t in module.state_dict().items()} == shapes | {"0.bias": (48,)}


def test_another_form_of_the_product_is_used_where_one_is_registered():
    layers = [small(linear(4, 64), form) for form in FORMS]
    own = {"int8_linear": lambda x, *_: x[..., :1] * 0 + 5, "int4_linear": lambda x, *_: x[..., :1] * 0 + 6}
    kernels.register_kernels("cpu", **own)
    try:
        assert [layer(draw(2, 64)).tolist() for layer in layers] == [[[5], [5]], [[6], [6]]]
    finally:
        kernels.register_kernels("cpu")


@pytest.mark.parametrize(
    ("form", "device", "dtype", "says"),
    [
        ("w8", "cpu", torch.bfloat16, None),
        ("w8", "cpu", torch.float32, "8-bit weights are widened for every token on .*cpu.* in float32.*bfloat16 only"),
        ("w4", "cpu", torch.float32, "4-bit weights are widened for every token on .*cpu.* in float32.*bfloat16 only"),
        ("w4", "cuda", torch.float32, "4-bit.*float16 and bfloat16 only"),
        ("w4", "cuda", torch.bfloat16, None),
        ("w8", "npu", torch.float16, None),
        ("w8", "mps", torch.float16, "no such product"),
    ],
)
def test_where_no_product_reads_codes_it_is_said(form, device, dtype, says, monkeypatch):
    monkeypatch.setattr(quantised_products, "has_triton", lambda: True)
    reason = slow_reason(form, SimpleNamespace(type=device), dtype)
    assert reason is None if says is None else re.search(says, reason)


@needs_fbgemm
@pytest.mark.parametrize("form", FORMS)
def test_a_cpus_packed_weights_are_not_slow_in_any_dtype_and_others_are(form, caplog):
    module = nn.Sequential(small(linear(48, 96), form))
    warn_if_slow(pack(copy.deepcopy(module), CPU), CPU, torch.float32)
    assert not caplog.records
    if form == "w4":
        module[0].weight_zero += 1e-3  # which bfloat16 does not have, so that these are not packed
        pack(module, CPU)
    warn_if_slow(module, CPU, torch.float32)
    assert re.search("slower than with whole weights: .-bit weights are widened for every token", caplog.text)


def test_cuda_without_triton_is_said(monkeypatch):
    monkeypatch.setattr(quantised_products, "has_triton", lambda: False)
    assert "triton is not installed" in slow_reason("w8", torch.device("cuda"), torch.bfloat16)


def test_4_bits_run_on_a2_and_a3_in_half_precision_and_are_refused_elsewhere_by_name(monkeypatch):
    npu = SimpleNamespace(type="npu")
    for family in ("A2", "A3", "310P", "A5", "Ascend910A"):
        monkeypatch.setattr(quantised_products, "capabilities", lambda _, family=family: SimpleNamespace(family=family))
        check_form("w8", npu)
        if family in ("A2", "A3"):
            check_form("w4", npu, torch.bfloat16)
            with pytest.raises(InputError, match="not in fp32; use another dtype, or w8"):
                check_form("w4", npu, torch.float32)
        else:
            with pytest.raises(InputError, match=rf"\({family}\): only A2 and A3 .*; use w8"):
                check_form("w4", npu, torch.float16)


@pytest.fixture(scope="module")
def opened():
    """The small checkpoint by its planner's and decoder's form, each opened once."""
    models = {}

    def open_form(form):
        if form not in models:
            request = P.PlacementRequest("cpu", planner_weights=form, decoder_weights=form)
            models[form] = GlmImage.from_pretrained(SMALL, placement=P.choose(SMALL, request))
        return models[form]

    return open_form


@pytest.mark.parametrize("form", FORMS)
def test_layers_and_head_are_rounded_and_nothing_else(opened, form):
    plain, few = opened("full"), opened(form)
    for name in ("planner", "transformer"):
        wanted = forms_of(getattr(plain, name), form)
        if fbgemm_products.available():  # one layer stands for three
            wanted = {re.sub(r"\.[qkv]_proj$", ".qkv_proj", layer): own for layer, own in wanted.items()}
        kinds = {layer: LINEARS[own] for layer, own in wanted.items()}
        found = {n: type(m) for n, m in getattr(few, name).named_modules() if isinstance(m, tuple(LINEARS.values()))}
        assert found == kinds
    layers = plain.configs[P.PLANNER].text_config.num_hidden_layers
    assert len(forms_of(plain.planner, form)) == 6 * layers + 1
    assert CpuDecode.suits(few.planner, CPU) == fbgemm_products.available()


def prompts():
    """Of the small checkpoint's benchmark: one with each number of texts."""
    files = [json.loads((SMALL / "benchmark" / f"{n}.json").read_text()) for n in (1, 2, 3, 4)]
    return [file["data_list"][0]["prompt"] for file in files]


@pytest.fixture(scope="module")
def plans(opened):
    """Prompt batch and tokens of each prompt's plan by whole weights."""
    found, model = [], opened("full")
    for prompt in prompts():
        plan = model.plan(prompt, 96, 192, seed=3)
        tokens = [plan.preview_token_ids, plan.prior_token_ids_d32]
        batch = next(reversed(model.memory.prefixes.values()))[1].batch
        found.append((batch, torch.cat([t.reshape(1, -1) for t in tokens if t is not None], dim=1)))
    return found


@torch.no_grad()
def choices(planner, batch, tokens):
    """Log probabilities (tokens, codebook) of every token of a plan after the ones before it."""
    ids, last = torch.cat((batch.ids, tokens[:, :-1]), dim=1), tokens.shape[1] - 1
    tables = planner.rope_tables(torch.cat((batch.positions, batch.decode_positions[..., :last]), dim=2))
    length, codebook = ids.shape[1], planner.config.vq_config.num_embeddings
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    logits = planner(ids, tables, mask, planner.new_cache(1, length, CPU), 0, length, every_row=True)
    return logits[0, -tokens.shape[1] :, :codebook].log_softmax(-1)


@pytest.mark.parametrize(("form", "limit"), [("w8", 0.001), ("w4", 0.006)])
def test_the_trained_planners_choices_stay_near(opened, plans, form, limit):
    """The mean divergence between the distributions of a token."""
    divergences = []
    for plan in plans:
        exact, other = (choices(opened(f).planner, *plan) for f in ("full", form))
        divergences.append((exact.exp() * (exact - other)).sum(-1).mean().item())
    assert 0 < sum(divergences) / len(divergences) < limit


@pytest.mark.parametrize(("form", "limit"), [("w8", 60), ("w4", 40)])
def test_the_trained_decoders_images_stay_near(opened, form, limit):
    plan = opened("full").plan(prompts()[0], 96, 192, seed=1)
    exact, other = (opened(f).decode(opened(f).denoise(plan, steps=4, seed=1)) for f in ("full", form))
    assert 10 * torch.log10(1 / (exact - other).square().mean()) > limit


def test_rounding_a_fused_planner_forgets_the_joined_weights(opened, plans):
    plain = copy.deepcopy(opened("full").planner)
    plain.fuse()
    found = choices(round_layers(plain, "w8"), *plans[0])
    assert_close(found, choices(opened("w8").planner, *plans[0]), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_estimate_counts_what_weights_take(opened, form):
    request = P.PlacementRequest("cpu", planner_weights=form, decoder_weights=form)
    placement, needs = P.plan_placement(SMALL, request)
    for name, module in ((P.PLANNER, opened(form).planner), (P.DECODER, opened(form).transformer)):
        live = sum(parameter.nbytes for parameter in module.parameters())
        packed = (layer.packed for layer in module.modules() if getattr(layer, "packed", None) is not None)
        live += sum(fbgemm_products.unpack(codes).nbytes for codes in packed)
        assert 0.95 * live < needs.weights[name] < 1.05 * live
    assert f"{form} weights" in P.describe(placement, needs)


def test_the_releases_weights_shrink():
    sizes, found = P.CheckpointSizes.of_release(), []
    for form in ("full", *FORMS):
        _, needs = P.plan_placement(
            sizes, P.PlacementRequest("cpu", "bf16", planner_weights=form, decoder_weights=form)
        )
        found.append([round(needs.weights[name] / P.GIB, 1) for name in (P.PLANNER, P.DECODER)])
    assert found == [[18.8, 12.9], [11.2, 6.6], [8.8, 4.2]]
