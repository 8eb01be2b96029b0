"""The stand-in itself: torch_npu's operators agree with the CPU, and the rules of the hardware are enforced."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F


def attention_inputs(heads=2, kv_heads=2, queries=16, keys=16):
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return [torch.randn(1, h, length, 64) for h, length in sizes]


def causal(size=16):
    return torch.ones(size, size, dtype=torch.bool).tril()


OPERATORS = {
    "linear": (nn.Linear(8, 16), torch.randn(2, 5, 8)),
    "layer norm": (nn.LayerNorm(8), torch.randn(2, 5, 8)),
    "layer norm without weights": (nn.LayerNorm(8, elementwise_affine=False), torch.randn(2, 5, 8)),
    "rms norm": (nn.RMSNorm(8), torch.randn(2, 5, 8)),
    "group norm": (nn.GroupNorm(2, 4), torch.randn(1, 4, 8, 8)),
    "embedding": (nn.Embedding(10, 8), torch.randint(0, 10, (2, 5))),
    "conv2d": (nn.Conv2d(4, 8, 3, padding=1), torch.randn(1, 4, 8, 8)),
    "conv2d with stride": (nn.Conv2d(4, 8, 3, stride=2), torch.randn(1, 4, 9, 9)),
    "attention": (F.scaled_dot_product_attention, *attention_inputs()),
    "attention, causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *attention_inputs()),
    "attention, boolean mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        *attention_inputs(),
        causal(),
    ),
    "attention, grouped heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        *attention_inputs(4, 2, 1),
    ),
    "silu": (F.silu, torch.randn(4, 4)),
    "softmax and cumulative sum": (lambda x: x.softmax(-1).cumsum(-1), torch.randn(3, 100)),
    "argmax": (lambda x: x.argmax(-1), torch.randn(3, 100)),
    "topk": (lambda x: x.topk(5), torch.randn(3, 100)),
    "sort": (lambda x: x.sort(-1, descending=True), torch.randn(3, 100)),
    "cat": (lambda a, b: torch.cat([a, b], 1), torch.randn(2, 3), torch.randn(2, 4)),
    "index": (lambda x, i: x[i], torch.randn(6, 4), torch.tensor([1, 3])),
    "index by mask": (lambda x, m: x[m], torch.randn(6, 4), torch.tensor([1, 0, 1, 0, 0, 1]).bool()),
    "index copy": (
        lambda x, i, v: x.clone().index_copy_(0, i, v),
        torch.randn(6, 4),
        torch.tensor([1, 3]),
        torch.randn(2, 4),
    ),
    "where": (lambda x: torch.where(x > 0, x, 0.0), torch.randn(4, 4)),
    "masked fill": (lambda x, m: x.masked_fill(m, -1.0), torch.randn(16, 16), causal()),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), torch.randn(1, 4, 5, 5)),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"), torch.randn(1, 4, 5, 5)),
    "pad": (lambda x: F.pad(x, (0, 1, 0, 1)), torch.randn(1, 4, 5, 5)),
    "normalize": (lambda x: F.normalize(x, dim=-1), torch.randn(4, 8)),
    "nonzero": (lambda x: (x > 0).nonzero(), torch.randn(4, 4)),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), torch.randn(4, 4)),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), torch.randn(1, 4, 8, 8)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_equals_the_cpu(npu, name):
    function, *inputs = OPERATORS[name]
    moved = copy.deepcopy(function).to(npu) if isinstance(function, nn.Module) else function
    expected, got = function(*inputs), moved(*(x.to(npu) for x in inputs))
    for a, b in zip(*(result if isinstance(result, tuple) else (result,) for result in (expected, got))):
        assert b.device == npu
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-5)


def test_gelu_takes_the_tanh_whatever_it_is_asked_for(npu):
    x = torch.linspace(-4, 4, 100)
    for approximate in ("none", "tanh"):
        torch.testing.assert_close(F.gelu(x.to(npu), approximate=approximate).cpu(), F.gelu(x, approximate="tanh"))


def test_no_argument_handle_leaks(npu, cann):
    nn.Linear(8, 8).to(npu)(torch.randn(2, 8, device=npu)).sum().item()
    assert cann.live_handles() == 0


def test_copies_launches_and_waits_are_counted(npu, cann):
    x = torch.ones(8, device=npu)
    with cann.count() as seen:
        y = x * 2
    assert (seen.launches, seen.host_to_device_copies, seen.synchronizations) == (1, 0, 0)
    with cann.count() as seen:
        y.cpu()
    assert (seen.device_to_host_copies, seen.device_to_host_bytes) == (1, 32)
    assert seen.synchronizations >= 1


def test_a_graph_replays_on_new_inputs_and_launches_nothing_itself(npu, cann):
    x = torch.zeros(2, device=npu)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = (x + 1) * 3
    x.fill_(5)
    with cann.count() as seen:
        graph.replay()
    assert y.tolist() == [18.0, 18.0]
    assert (seen.replays, seen.launches) == (1, 0)


def test_a_host_copy_inside_a_capture_is_an_error(run_python):
    done = run_python(
        "import torch\nx, g = torch.zeros(2, device='npu'), torch.npu.NPUGraph()\nwith torch.npu.graph(g): x.tolist()\n"
    )
    assert done.returncode != 0
    assert "107027" in done.stderr


def test_a_device_has_the_memory_it_was_given(run_python):
    done = run_python(
        "import torch\n"
        "torch.npu.set_device(1)\n"
        "print(torch.npu.mem_get_info(1)[1] >> 20, torch.npu.device_count())\n"
        "try: torch.empty(200 << 20, dtype=torch.uint8, device='npu:1')\n"
        "except torch.OutOfMemoryError: print('out of memory')\n",
        fake_cann_memory_mb="128",
    )
    assert done.stdout.split("\n")[:2] == ["128 2", "out of memory"], done.stderr


@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("torch.complex64", "torch.view_as_complex(torch.ones(4, 2, device='npu')).neg()"),
        ("9 dimensions", "torch.ones(1, 2, 1, 2, 1, 2, 1, 2, 2, device='npu').transpose(0, 8).contiguous()"),
        ("memory of devices [0, 1]", "torch.ones(2, device='npu:0') + torch.ones(2, device='npu:1')"),
    ],
)
def test_strict_mode_refuses(npu, cann, why, code):
    with pytest.raises(RuntimeError) as error:
        eval(code)
    assert why in str(error.value)


def test_an_operator_without_a_kernel_is_an_error_not_a_cpu_fallback(npu, cann):
    with pytest.raises(RuntimeError):
        torch.special.i0(torch.ones(1, device=npu))


def test_310p_refuses_bfloat16_and_fused_attention(run_python):
    done = run_python(
        "import torch\n"
        "print(torch.npu.get_device_name(0))\n"
        "torch.ones(2, device='npu', dtype=torch.float16).neg()\n"
        "try: torch.ones(2, device='npu', dtype=torch.bfloat16).neg()\n"
        "except RuntimeError as error: print('refused' if 'bfloat16 on Ascend310P3' in str(error) else error)\n",
        fake_cann_soc="Ascend310P3",
    )
    assert done.stdout.split("\n")[:2] == ["Ascend310P3", "refused"], done.stderr


def test_a_machine_without_a_device_can_be_played(run_python):
    done = run_python("import torch; print(torch.npu.is_available())", fake_cann_devices="0")
    assert done.stdout.split() == ["False"], done.stderr


def test_a_busy_device_can_be_played(run_python):
    done = run_python("import torch; torch.ones(1, device='npu')", fake_cann_busy="1")
    assert "another process holds the device" in done.stderr
