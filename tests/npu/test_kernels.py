"""Every kernel on an NPU gives the numbers of plain torch; the fused ones launch fewer operators."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.devices.device import resolve_device
from comfyui_glm_image.pipeline.models import weight_forms
from torch import nn

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", autouse=True)
def prepared(npu):
    resolve_device(npu)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def compare(function, *inputs, dtype):
    """CPU in float32 against the NPU in `dtype`, on the same rounded numbers; tables stay float32."""
    rounded = [x.to(dtype) if x.is_floating_point() and not getattr(x, "is_table", False) else x for x in inputs]
    expected = function(*(x.float() if x.is_floating_point() else x for x in rounded))
    got = function(*(x.to("npu:0") for x in rounded))
    assert got.dtype == dtype
    torch.testing.assert_close(got.cpu().float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@dtypes
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_without_a_mask(draw, dtype, heads):
    compare(kernels.attention, draw(2, heads, 10, 16), draw(2, 2, 12, 16), draw(2, 2, 12, 16), dtype=dtype)


@dtypes
def test_attention_with_a_causal_mask(draw, dtype):
    mask = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, 10, 10)
    compare(kernels.attention, draw(2, 4, 10, 16), draw(2, 2, 10, 16), draw(2, 2, 10, 16), mask, dtype=dtype)


@dtypes
@pytest.mark.parametrize("shape", [(2, 8, 1, 16), (2, 2, 4, 16)])
def test_decoding_attention_with_a_mask_over_keys(draw, dtype, shape):
    mask = (torch.arange(20) < torch.tensor([[13], [7]]))[:, None, None]
    compare(kernels.attention, draw(*shape), draw(2, 2, 20, 16), draw(2, 2, 20, 16), mask, dtype=dtype)


def test_many_queries_that_see_the_same_keys_take_the_fused_kernel(draw, cann):
    mask = (torch.arange(80) < torch.tensor([[70], [33]]))[:, None, None]
    heads = [draw(2, 4, 80, 16) for _ in range(3)]
    compare(kernels.attention, *heads, mask, dtype=torch.bfloat16)
    on_card = [x.bfloat16().npu() for x in heads]
    cann.launched.clear()
    kernels.attention(*on_card, mask.npu())
    assert cann.launched["aclnnFlashAttentionScore"] == 1
    assert not any("MatMul" in name or "Softmax" in name for name in cann.launched)


@dtypes
def test_attention_with_a_position_bias(draw, dtype):
    def attend(q, k, v, bias):
        return kernels.attention(q, k, v, bias, 1.0)

    compare(attend, draw(1, 2, 5, 8), draw(1, 2, 5, 8), draw(1, 2, 5, 8), draw(1, 2, 5, 5), dtype=dtype)


def test_a_mask_changed_in_place_is_read_again(draw):
    q, k = draw(1, 2, 1, 8).bfloat16().npu(), draw(1, 2, 6, 8).bfloat16().npu()
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool, device="npu")
    first = kernels.attention(q, k, k, mask)
    mask[..., 3:] = False
    assert torch.equal(kernels.attention(q, k, k, mask).cpu(), kernels.attention(q, k, k, mask.clone()).cpu())
    assert not torch.equal(first.cpu(), kernels.attention(q, k, k, mask).cpu())


@dtypes
def test_rms_norm(draw, dtype):
    compare(lambda x, w: kernels.rms_norm(x, w, 1e-5), draw(2, 5, 8), draw(8), dtype=dtype)


@dtypes
@pytest.mark.parametrize("table", [(9, 16), (1, 1, 9, 16), (2, 1, 9, 16)])
def test_rope(draw, dtype, table):
    angles = draw(*table[:-1], table[-1] // 2).repeat(*(1 for _ in table[:-1]), 2) * 100
    x = draw(2, 3, 9, 16).to(dtype)
    expected = kernels.rope(x.float(), angles.cos(), angles.sin())
    got = kernels.rope(x.npu(), angles.cos().npu(), angles.sin().npu())
    assert got.dtype == dtype
    torch.testing.assert_close(got.cpu().float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@dtypes
def test_swiglu(draw, dtype):
    compare(kernels.swiglu, draw(2, 5, 12), dtype=dtype)


@dtypes
@pytest.mark.parametrize("rows", [(1, 1), (2, 40)])
def test_products_by_8_bit_weights(draw, dtype, rows):
    codes = (draw(24, 32) * 40).clamp(-127, 127).to(torch.int8)

    def product(x, scale, bias):
        return kernels.int8_linear(x, codes.to(x.device), scale, bias)

    compare(product, draw(*rows, 32), draw(24).abs() / 400, draw(24), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [(1, 1), (2, 40)])
def test_products_by_4_bit_weights(draw, cann, dtype, rows):
    layer = nn.Linear(96, 24)
    layer.weight.data[:, :32] = 0.1 + 1e-6 * layer.weight.data[:, :32]  # groups of one number in half precision
    layer.weight.data[3] = 0
    small = weight_forms._rounded_layer(layer.to(dtype), "w4")
    x = draw(*rows, 96).to(dtype)
    numbers = small.numbers(slice(None))
    expected = x.float() @ numbers.T + small.bias.float()
    small = small.npu()
    small.pack(torch.device("npu"))
    cann.launched.clear()
    got = small(x.npu())
    assert cann.launched["aclnnWeightQuantBatchMatmulV2"] == 1 and got.dtype == dtype
    torch.testing.assert_close(got.cpu().float(), expected, rtol=2e-2, atol=2e-2)
    assert len(small.weight) == 96 and small.weight.nbytes == 96 * 24 // 2


@dtypes
def test_gelu_by_tanh(draw, dtype):
    compare(kernels.gelu_tanh, 3 * draw(2, 50), dtype=dtype)


@dtypes
def test_gelu_by_the_error_function(draw, dtype):
    compare(kernels.gelu, 3 * draw(2, 50), dtype=dtype)


@pytest.mark.parametrize("batch", [1, 2])
def test_modulated_norm(draw, batch):
    def norm(x, scale, shift):
        return kernels.modulated_norm(x, scale, shift, 1e-5)

    compare(norm, draw(2, 5, 8), draw(batch, 8), draw(batch, 8), dtype=torch.float32)


def test_each_fused_form_is_one_kernel_and_its_casts(draw, cann):
    x, weight, gate = (t.bfloat16().npu() for t in (draw(2, 5, 8), draw(8), draw(2, 5, 16)))
    heads = draw(2, 3, 5, 8).bfloat16().npu()
    table = draw(5, 8).npu()
    codes = draw(4, 8).to(torch.int8).npu()
    calls = {
        "int8_linear": (lambda: kernels.int8_linear(x, codes, weight[:4]), {"aclnnWeightQuantBatchMatmulV2": 1}),
        "rms_norm": (lambda: kernels.rms_norm(x, weight, 1e-5), {"aclnnRmsNorm": 1}),
        "swiglu": (lambda: kernels.swiglu(gate), {"aclnnSwiGlu": 1}),
        "gelu": (lambda: kernels.gelu(x), {"aclnnGeluV2": 1}),
        "gelu_tanh": (lambda: kernels.gelu_tanh(x), {"aclnnGeluV2": 1}),
        "rope": (
            lambda: kernels.rope(heads, table, table),
            {"aclnnRotaryPositionEmbeddingV2": 1, "aclnnInplaceCopy": 2},
        ),
        "attention": (lambda: kernels.attention(heads, heads, heads), {"aclnnFlashAttentionScore": 1}),
    }
    for name, (call, expected) in calls.items():
        cann.launched.clear()
        call()
        assert dict(cann.launched) == expected, name
