"""Broken installations played with the real torch_npu: each is explained, and the CPU stays usable."""

import json

import pytest

CLI = "from comfyui_glm_image.cli.main import main\n"
DRAW = (
    CLI + "import sys\n"
    "code = main(['generate', 'a red sign', '-o', sys.argv[1], '--model', {folder!r}, '--device', {device!r},"
    " '--dtype', 'fp32', '--width', '64', '--height', '64', '--steps', '1'])\n"
    "print('exit code', code)\n"
)
FAULTS = {
    "no CANN": (
        {"ld_library_path": "", "ascend_home_path": "", "ascend_opp_path": ""},
        ("torch_npu cannot find CANN", "set_env.sh", "TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
    ),
    "no device": ({"fake_cann_devices": "0"}, ("sees no NPU", "npu-smi info", "/dev/davinci0")),
    "device busy": ({"fake_cann_busy": "1"}, ("another process or container holds it", "npu-smi info", "--device cpu")),
}


@pytest.fixture(scope="module")
def folder(references):
    return str(references("plain")[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_explains_and_goes_on(run_python, fault):
    settings, parts = FAULTS[fault]
    done = run_python(CLI + "print('exit code', main(['doctor', '--json', '--device', 'npu']))", **settings)
    *report, last = done.stdout.splitlines()
    assert last == "exit code 1", done.stderr
    findings = json.loads("\n".join(report))["findings"]
    text = " ".join(f["text"] for f in findings if f["status"] == "fail")
    assert all(part in text for part in parts), text
    assert any(f["topic"] == "kernel" and f["status"] == "ok" for f in findings)


@pytest.mark.parametrize("fault", FAULTS)
def test_drawing_on_the_npu_is_one_explaining_line_and_the_cpu_draws(run_python, folder, fault, tmp_path):
    settings, parts = FAULTS[fault]
    code = "".join(DRAW.format(folder=folder, device=device) for device in ("npu", "cpu"))
    done = run_python(f"import sys; sys.argv = ['', {str(tmp_path / 'out.png')!r}]\n" + code, **settings)
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit code 1", "exit code 0"]
    line = next(line for line in done.stderr.splitlines() if line.startswith("glm-image: "))
    assert all(part in line for part in parts), line
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.png").stat().st_size > 0


def test_memory_that_runs_out_while_loading_is_explained(run_python, folder, tmp_path):
    """The estimate is told that there is plenty, the card has none."""
    code = (
        "from comfyui_glm_image.pipeline.loading import placement\n"
        "placement.available = lambda device: 1 << 40\n"
        f"import sys; sys.argv = ['', {str(tmp_path / 'out.png')!r}]\n" + DRAW.format(folder=folder, device="npu")
    )
    done = run_python(code, fake_cann_memory_mb="3")
    assert "exit code 1" in done.stdout, done.stderr
    assert "glm-image: the planner does not fit on npu:0" in done.stderr
    assert "--offload phases or stream" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_too_small_is_refused_before_loading(run_python, folder, tmp_path):
    code = f"import sys; sys.argv = ['', {str(tmp_path / 'out.png')!r}]\n" + DRAW.format(folder=folder, device="npu")
    done = run_python(code, fake_cann_memory_mb="3")
    assert "glm-image: the model will hardly fit" in done.stderr
    assert "peak on npu:0" in done.stderr


def test_plain_import_of_torch_fails_without_cann_as_the_doctor_says(run_python):
    done = run_python("import torch", ld_library_path="")
    assert done.returncode != 0 and "TORCH_DEVICE_BACKEND_AUTOLOAD" in done.stderr
