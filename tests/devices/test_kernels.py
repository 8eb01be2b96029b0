"""Each kernel against an independent computation in float64, and the per-device table."""

import math

import pytest
import torch
from comfyui_glm_image.pipeline.devices import kernels
from torch.testing import assert_close


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def clean_table():
    yield
    kernels.register_kernels("cpu")


def softmax_attention(q, k, v, mask, scale):
    k, v = (t.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ v).float()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention_with_shared_heads_and_boolean_masks(kv_heads, masked):
    q, k, v = draw(2, 4, 5, 8), draw(2, kv_heads, 7, 8, seed=1), draw(2, kv_heads, 7, 8, seed=2)
    mask = (draw(2, 1, 5, 7, seed=3) > -0.5) | (torch.arange(7) == 3) if masked else None
    assert_close(kernels.attention(q, k, v, mask), softmax_attention(q, k, v, mask, 8**-0.5))


def test_causal_attention_is_attention_with_a_triangle(monkeypatch):
    q, k, v = (torch.randn(2, heads, 7, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = kernels.attention(q, k, v, triangle)
    assert_close(kernels.attention(q, k, v, kernels.CAUSAL), expected)
    seen = []
    monkeypatch.setitem(kernels._REGISTERED, "cpu", {"attention": lambda *given: seen.append(given[3])})
    kernels.attention(q, k, v, kernels.CAUSAL)  # a device with a kernel of its own gets the triangle
    assert torch.equal(seen[0], triangle[None, None])


def test_attention_scale_replaces_the_default():
    q, k, v = draw(1, 2, 3, 4), draw(1, 2, 3, 4, seed=1), draw(1, 2, 3, 4, seed=2)
    assert_close(kernels.attention(q, k, v, scale=1.0), softmax_attention(q, k, v, None, 1.0))


def test_rms_norm_gives_unit_root_mean_square_times_weight():
    x, weight = draw(3, 5, 16) * 7, draw(16, seed=1)
    expected = x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt() * weight
    assert_close(kernels.rms_norm(x, weight, 1e-5), expected)


def test_rms_norm_trains_after_it_ran_in_inference_mode():
    x, weight = draw(3, 16).requires_grad_(), draw(16, seed=1).requires_grad_()
    with torch.inference_mode():
        kernels.rms_norm(x, weight, 3e-5)
    kernels.rms_norm(x, weight, 3e-5).square().sum().backward()
    grads = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    torch.nn.functional.rms_norm(x, (16,), weight, 3e-5).square().sum().backward()
    assert_close(grads, (x.grad, weight.grad))


def test_rms_norm_of_large_half_values_does_not_overflow():
    x = torch.full((1, 8), 3e4, dtype=torch.float16)
    assert_close(kernels.rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5), torch.ones_like(x))


def test_rope_is_a_complex_rotation_of_the_two_halves():
    x, angles = draw(2, 3, 5, 8), draw(5, 4, seed=1)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    cos, sin = (torch.cat((t, t), dim=-1) for t in (angles.cos(), angles.sin()))
    assert_close(kernels.rope(x, cos, sin), torch.cat((turned.real, turned.imag), dim=-1))


def test_rope_with_narrow_tables_turns_the_first_channels_only():
    x, angles = draw(2, 3, 5, 16), draw(5, 8, seed=1)
    turned = kernels.rope(x, angles.cos(), angles.sin())
    assert_close(turned[..., :8], kernels.rope(x[..., :8].contiguous(), angles.cos(), angles.sin()))
    assert torch.equal(turned[..., 8:], x[..., 8:])


def test_rope_keeps_the_dtype_and_leaves_position_zero_unchanged():
    x = draw(1, 2, 3, 8).bfloat16()
    assert torch.equal(kernels.rope(x, torch.ones(3, 8), torch.zeros(3, 8)), x)


def test_swiglu_gates_the_second_half_by_the_first():
    x = draw(2, 3, 8)
    assert_close(kernels.swiglu(x), x[..., :4] * torch.sigmoid(x[..., :4]) * x[..., 4:])


def test_gelu_tanh_follows_its_formula():
    x = draw(100) * 3
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    assert_close(kernels.gelu_tanh(x), 0.5 * x * (1 + torch.tanh(inner)))


def test_gelu_follows_the_error_function():
    x = draw(100) * 3
    assert_close(kernels.gelu(x), 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))


def test_one_modulation_for_all_equals_the_same_modulation_for_each():
    x, scale, shift = draw(3, 5, 16), draw(1, 16, seed=1), draw(1, 16, seed=2)
    each = kernels.modulated_norm(x, scale.expand(3, -1), shift.expand(3, -1), 1e-5)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale + shift
    assert_close(kernels.modulated_norm(x, scale, shift, 1e-5), expected)
    assert_close(each, expected)


def test_a_registered_form_is_used_for_its_device_only(clean_table):
    x = draw(2, 8)
    kernels.register_kernels("cpu", swiglu=lambda gate_up: gate_up * 0)
    assert kernels.swiglu(x).shape == (2, 8)
    assert kernels.swiglu(x.to("meta")).shape == (2, 4)
    kernels.register_kernels("cpu")
    assert kernels.swiglu(x).shape == (2, 4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="softmax"):
        kernels.register_kernels("cpu", softmax=torch.softmax)
