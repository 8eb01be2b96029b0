"""The device check on two NPUs of the stand-in: every stage passes, and a kernel that is wrong fails its own."""

import pytest
from comfyui_glm_image.pipeline.benchmark import timing
from comfyui_glm_image.pipeline.device_check import stages
from comfyui_glm_image.pipeline.device_check.check import DeviceCheckRequest, check_device
from comfyui_glm_image.pipeline.device_check.stages import STAGES
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.devices.remembered import remembered


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Limits that a CPU measures in no time, and a cache folder of its own."""
    monkeypatch.setattr(timing, "COPIED_ELSEWHERE", 1 << 20)
    monkeypatch.setattr(timing, "SIDE_ELSEWHERE", 128)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def request(npu):
    return DeviceCheckRequest(str(npu), config="tiny", height=64, width=64, steps=2, tokens=4, repeats=1)


def test_every_stage_passes_and_both_devices_are_looked_at(npu, cann):
    report = check_device(request(npu), STAGES)
    assert report.failed == [], [stage.error for stage in report.stages]
    by_name = {stage.name: stage for stage in report.stages}
    assert {note.split(",")[0] for note in (f.note for f in by_name["kernels"].figures) if note} == {"npu:0", "npu:1"}
    assert by_name["graph"].figures[0].value > 0
    waits = next(figure for figure in by_name["launches"].figures if figure.name == "waits of a token")
    assert waits.value == 0
    assert remembered(npu, "batched guidance") in (True, False)


def test_exhausted_memory_that_is_not_recognised_fails_its_stage(npu, monkeypatch):
    monkeypatch.setattr(stages, "recognises_out_of_memory", lambda _: False)
    report = check_device(request(npu), {name: STAGES[name] for name in ("memory errors", "launch")})
    assert report.failed == ["memory errors"] and report.stages[1].figures


def test_a_wrong_kernel_fails_its_stage_and_the_others_go_on(npu):
    own = kernels.registered_kernels("npu")
    kernels.register_kernels("npu", **own | {"swiglu": lambda gate_up: gate_up[..., : gate_up.shape[-1] // 2] * 0})
    try:
        report = check_device(request(npu), {name: STAGES[name] for name in ("kernels", "graph")})
    finally:
        kernels.register_kernels("npu", **own)
    assert report.failed == ["kernels"]
    assert [figure.name for figure in report.stages[0].figures if not figure.good] == ["swiglu", "swiglu"]
