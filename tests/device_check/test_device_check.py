"""The device check from end to end on the CPU, and with each stage broken on purpose."""

import json

import pytest
import torch
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.denoising import cfg
from comfyui_glm_image.pipeline.denoising.cfg import CfgPasses
from comfyui_glm_image.pipeline.device_check import check, stages
from comfyui_glm_image.pipeline.device_check.check import DeviceCheckRequest, check_device
from comfyui_glm_image.pipeline.device_check.results import DeviceReport, Figure, StageReport, markdown
from comfyui_glm_image.pipeline.devices import remembered
from comfyui_glm_image.pipeline.errors import InputError

TINY = {"device": "cpu", "config": "tiny", "height": 64, "width": 64, "steps": 2, "tokens": 4, "repeats": 1}


@pytest.fixture(scope="module")
def report():
    return check_device(DeviceCheckRequest(**TINY), stages.STAGES)


@pytest.fixture
def quick(monkeypatch):
    """Limits that take no time."""
    monkeypatch.setattr(stages, "measure_ceilings", lambda *_: check.Ceilings(1e9, 1e9))


def test_every_stage_passes_on_the_cpu(report):
    assert report.failed == []
    assert [stage.name for stage in report.stages] == list(stages.STAGES)
    assert all(stage.figures for stage in report.stages if stage.name != "memory errors")
    assert {"model", "device", "torch", "memory", "size"} <= report.about.keys()


def test_the_report_is_a_table_that_can_be_pasted(report):
    text = markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + sum(len(stage.figures) for stage in report.stages)
    assert {row.count("|") for row in rows} == {7}
    assert "Every stage passed" in text
    json.dumps(report.as_json())


@pytest.mark.parametrize("broken", stages.STAGES)
def test_a_stage_that_fails_is_reported_and_the_others_go_on(broken, quick):
    def fails(_):
        yield Figure("before the fault", 1, "")
        raise RuntimeError("aclnnAdd failed\nwith a long trace")

    cheap = {name: lambda _: iter([Figure("fine", 1, "")]) for name in stages.STAGES}
    report = check_device(DeviceCheckRequest(**TINY), cheap | {broken: fails})
    assert report.failed == [broken]
    bad = next(stage for stage in report.stages if stage.name == broken)
    assert bad.error == "RuntimeError: aclnnAdd failed" and len(bad.figures) == 1
    assert len(report.stages) == len(stages.STAGES)
    assert f"| {broken} | **failed** |" in markdown(report) and f"Failed: {broken}" in markdown(report)


FAULTS = {  # stage -> (what to replace in `stages`, its broken form, the sign of it in the report)
    "kernels": ("kernel_errors", lambda _: [("rope", 0.5, 1e-4)], "**wrong**"),
    "graph": ("graph_agrees", lambda _: (None, False, 7), "tokens equal eager ones: False"),
    "launches": ("WAITS", {"aten::add.Tensor", "aten::mm", "aten::copy_", "aten::mul.Tensor"}, "**wrong**"),
}


@pytest.mark.parametrize("stage", FAULTS)
def test_a_wrong_result_fails_its_stage(stage, monkeypatch):
    name, broken, sign = FAULTS[stage]
    monkeypatch.setattr(stages, name, broken)
    report = check_device(DeviceCheckRequest(**TINY), {stage: stages.STAGES[stage]})
    assert report.failed == [stage] and sign in markdown(report)


RAISING = {  # stage -> where its fault is planted
    "limits": (stages, "measure_ceilings"),
    "launch": (stages, "time_call"),
    "prompt": (check, "measure_stage"),
    "planner": (check, "measure_stage"),
    "planner, 8 bits": (check, "measure_stage"),
    "decoder": (check, "measure_stage"),
    "VAE": (check, "measure_stage"),
}


@pytest.mark.parametrize("broken", RAISING)
def test_a_fault_inside_a_stage_leaves_the_rest_of_the_report(broken, monkeypatch, quick):
    def fails(*_, **__):
        raise RuntimeError("EZ9999: inner error")

    monkeypatch.setattr(*RAISING[broken], fails)
    report = check_device(DeviceCheckRequest(**TINY), {name: stages.STAGES[name] for name in (broken, "launches")})
    assert report.failed == [broken]
    assert f"| {broken} | **failed** | | | | RuntimeError: EZ9999: inner error |" in markdown(report)
    assert len(report.stages[1].figures) == 2


def test_an_image_that_is_not_finite_fails(monkeypatch):
    def spoiled(request):
        bench, name = opened(request)
        bench.models.transformer.proj_out.weight.fill_(float("nan"))
        bench.models.release = lambda *_: None
        return bench, name

    opened = check.open_bench
    monkeypatch.setattr(check, "open_bench", spoiled)
    report = check_device(DeviceCheckRequest(**TINY), {"image": stages.image})
    assert report.failed == ["image"] and "holds NaN or infinity" in markdown(report)


def test_the_command_writes_both_files_and_its_exit_code_says_whether_all_passed(tmp_path, monkeypatch, capsys, quick):
    given = [
        "device-check",
        "--device",
        "cpu",
        "--config",
        "tiny",
        "--stages",
        "graph,launch",
        "-o",
        str(tmp_path / "a.b"),
    ]
    assert main(given) == 0
    assert json.loads((tmp_path / "a.b.json").read_text())["failed"] == []
    monkeypatch.setattr(stages, "graph_agrees", lambda _: (None, False, 7))
    assert main(given) == 1
    assert json.loads((tmp_path / "a.b.json").read_text())["failed"] == ["graph"]
    assert "Failed: graph" in (tmp_path / "a.b.md").read_text()
    assert "failed: graph; please open an issue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"config": "huge"}, "'huge' is not known"),
        ({"height": 9}, "multiple of 32"),
        ({"tokens": 1}, "use 2 or more"),
    ],
)
def test_what_cannot_be_checked_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        DeviceCheckRequest(**TINY | wrong)


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card, played by the meta device, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return torch.device("meta")


def test_the_way_of_guidance_that_was_faster_is_remembered(card, monkeypatch):
    monkeypatch.setattr(cfg, "available", lambda _: 1 << 40)
    glyphs = torch.zeros(1, 1, 4)
    context = stages_context(glyphs)
    passes = CfgPasses(context, context, 1.5)
    assert passes.batches_well(card, 1, offloaded=False)
    remembered.remember(card, "batched guidance", False)
    assert not passes.batches_well(card, 1, offloaded=False)
    assert passes.batches_well(card, 1, offloaded=True)  # layers come once for both
    remembered.remember(card, "batched guidance", True)
    assert passes.batches_well(card, 1, offloaded=False)


def stages_context(glyphs):
    from comfyui_glm_image.pipeline.models.transformer_context import Context

    return Context(glyphs, torch.zeros(1, 4, 4), (2, 2), glyphs, glyphs)


def test_a_memory_that_cannot_be_read_or_written_says_nothing(card, tmp_path):
    assert remembered.remembered(card, "batched guidance") is None
    (tmp_path / "comfyui-glm-image").mkdir()
    (tmp_path / "comfyui-glm-image" / "devices.json").write_text("{not json")
    assert remembered.remembered(card, "batched guidance") is None


def test_numbers_and_marks_of_a_table():
    report = DeviceReport({}, [StageReport("a|b", 1, [Figure("x", 1234.5, "us", 0.5, "memory", good=False)])])
    assert "| a/b | x | 1,234 us | 50% memory |  | **wrong** |" in markdown(report)
