"""The table of operators is what torch_npu's dispatcher says, and the model on a card runs what the audit lists."""

import importlib.util
from pathlib import Path

import pytest
import torch
from comfyui_glm_image.pipeline.devices.device import resolve_device
from comfyui_glm_image.pipeline.diagnostics import operator_audit as audit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dispatcher(npu):
    """Operator -> status, from this torch_npu's dispatcher, and the text of a table made of it."""
    spec = importlib.util.spec_from_file_location("npu_ops", ROOT / "tools" / "npu_ops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.statuses(), module.table()


def test_the_table_in_the_package_is_the_dispatchers(dispatcher):
    _, text = dispatcher
    ours = audit.TABLE.read_text()
    if text.splitlines()[0] != ours.splitlines()[0]:
        pytest.skip(f"the table is of another version: {ours.splitlines()[0]}")
    assert text == ours


def test_the_models_operators_are_as_well_off_on_this_version(dispatcher):
    statuses, _ = dispatcher
    ran = {name for section in audit.audit(torch.device("cpu"), torch.bfloat16) for name, _ in section.calls}
    worse = {name: statuses.get(name, "missing") for name in ran if audit.table()[name] != statuses.get(name)}
    assert {name: now for name, now in worse.items() if now in ("fallback", "missing")} == {}


@pytest.fixture(scope="module")
def on_npu(npu):
    return audit.audit(resolve_device(npu), torch.bfloat16)


def test_a_card_runs_nothing_badly(on_npu):
    assert [(s.name, s.findings) for s in on_npu if s.findings] == []


def test_the_audit_on_a_cpu_lists_the_fused_operators_that_a_card_runs(on_npu):
    on_cpu = audit.audit(torch.device("cpu"), torch.bfloat16)
    for ours, theirs in zip(on_cpu, on_npu):
        fused = [{name for name, _ in s.calls if name.startswith("npu::")} for s in (ours, theirs)]
        assert fused[0] == fused[1], ours.name


def test_loops_neither_copy_to_the_host_nor_wait(npu, cann):
    with torch.inference_mode():
        for name, hot, run in audit.parts(resolve_device(npu), torch.bfloat16):
            if not hot:
                run()
                continue
            run()
            with cann.count() as seen:
                run()
            assert (seen.host_to_device_copies, seen.device_to_host_copies, seen.synchronizations) == (0, 0, 0), name
