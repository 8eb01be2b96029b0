"""The audit finds what an NPU does badly, and finds none of it in the model."""

import pytest
import torch
import torch.nn.functional as F
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.diagnostics import operator_audit as audit


@pytest.fixture(scope="module")
def sections():
    return audit.audit(torch.device("cpu"), torch.bfloat16)


def watched(run, hot=True):
    section = audit.Section("part", hot)
    with audit.WatchAttention(section), audit.Watch(section):
        run()
    return section.findings


def test_the_model_runs_nothing_that_an_npu_does_badly(sections):
    assert [(s.name, s.findings) for s in sections if s.findings] == []
    assert len(sections) == 18


def test_the_decode_step_uses_the_fused_operators(sections):
    token = next(s for s in sections if s.name == "planner: token for a graph")
    fused = {name for name, _ in token.calls if name.startswith("npu::")}
    assert fused == {
        "npu::npu_fused_infer_attention_score",
        "npu::npu_rms_norm",
        "npu::npu_rotary_mul",
        "npu::npu_swiglu",
    }


def test_chips_without_fused_operators_get_none_and_do_nothing_badly():
    sections = audit.audit(torch.device("cpu"), torch.float16, fused=False)
    assert [(s.name, s.findings) for s in sections if s.findings] == []
    own = {name for s in sections for name, _ in s.calls if name.startswith("npu::")}
    assert own == {"npu::npu_weight_quant_batchmatmul"}  # which every chip has


def test_the_kernels_are_as_before_after_an_audit(sections):
    assert kernels.registered_kernels("cpu") == {}


@pytest.mark.parametrize(
    ("finding", "run"),
    [
        ("aten::i0 is a fallback", lambda: torch.i0(torch.ones(1))),
        ("has torch.float64", lambda: torch.ones(2).double() + 1),
        ("has torch.complex64", lambda: torch.view_as_complex(torch.ones(4, 2)).conj()),
        ("has 9 dimensions", lambda: torch.ones([1] * 9) + 1),
        ("aten::_local_scalar_dense waits", lambda: torch.ones(1).item()),
        ("aten::nonzero waits", lambda: torch.ones(1).nonzero()),
        ("aten::index.Tensor waits", lambda: torch.ones(3)[torch.tensor([True, False, True])]),
        (
            "mask of torch.float32",
            lambda: F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 4)] * 3, attn_mask=torch.zeros(2, 2)),
        ),
    ],
)
def test_what_an_npu_does_badly_is_found(finding, run):
    assert any(finding in found for found in watched(run))


def test_waiting_is_allowed_outside_loops():
    assert watched(lambda: torch.ones(1).item(), hot=False) == []


def test_the_command_prints_a_table_and_its_summary(capsys):
    assert main(["audit-npu"]) == 0
    out = capsys.readouterr().out
    assert "npu::npu_swiglu" in out and "nothing found" in out


def test_a_finding_makes_the_command_fail(monkeypatch, capsys):
    bad = [("planner: token", True, lambda: torch.ones(1).item())]
    monkeypatch.setattr(audit, "parts", lambda device, dtype: bad)
    assert main(["audit-npu", "--summary"]) == 1
    assert "planner: token: aten::_local_scalar_dense waits for the device" in capsys.readouterr().out
