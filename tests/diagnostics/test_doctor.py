"""The doctor on sound, broken and absurd installations; it explains and never falls over."""

import importlib.machinery
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.devices import npu_pairs
from comfyui_glm_image.pipeline.devices.ascend import explain_npu_failure
from comfyui_glm_image.pipeline.devices.npu_pairs import Pair
from comfyui_glm_image.pipeline.diagnostics import doctor, software
from comfyui_glm_image.pipeline.diagnostics.findings import CheckContext, CheckResult, guarded
from comfyui_glm_image.pipeline.loading import placement
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LORA = ROOT / "checkpoints" / "loras" / "glm_image_small_planner_top.safetensors"
PLANNER = ROOT / "checkpoints" / "small" / "vision_language_encoder" / "model.safetensors"


CONTEXT = CheckContext("cpu")


def reported(check):
    return [(result.status, result.text) for result in guarded(check, CONTEXT)]


@pytest.fixture
def installed(monkeypatch):
    """Plays installed versions, whether torch_npu's folder is there, and how imports fail."""

    def play(torch="2.13.0", torch_npu=None, cuda=None, error=None):
        versions = {"torch": torch, "torch_npu": torch_npu}
        monkeypatch.setattr(software, "version_of", versions.get)
        monkeypatch.setattr(software, "cuda_of_torch", lambda: cuda)
        monkeypatch.setattr(software, "import_error", lambda module, *_: error)
        monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: versions.get(name))

    return play


def test_a_sound_machine_gets_exit_code_0_and_json(capsys):
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    topics = {finding["topic"] for finding in report["findings"]}
    assert report["ok"] and {"python", "torch", "device", "placement", "kernel", "GELU", "graph"} <= topics


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], "small, 1 image of 192x96 px; placement: everything stays loaded"),
        (["--image", "REFERENCE", "--image", "REFERENCE", "--steps", "9"], "1 image of 192x96 px, 2 references;"),
        (["--planner-weights", "w8", "--count", "3", "--cfg", "1"], "3 images of 192x96 px, guidance off;"),
        (["--offload", "phases", "--step-cache", "0.1", "--dtype", "bf16", "--planner-lora", "LORA"], "bfloat16"),
    ],
)
def test_doctor_judges_what_generate_with_the_same_options_would_do(options, shown, capsys, tmp_path, monkeypatch):
    files = {"REFERENCE": str(tmp_path / "reference.png"), "LORA": str(LORA)}
    Image.new("RGB", (192, 96)).save(files["REFERENCE"])
    options = ["--model", "small", "--device", "cpu", "--width", "192", "--height", "96", *map(str, options)]
    options = [files.get(word, word) for word in options]
    asked, plan_placement = [], placement.plan_placement

    def note(sizes, request):
        asked.append(replace(request, device=None))
        return plan_placement(sizes, request)

    monkeypatch.setattr(placement, "plan_placement", note)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_placement,))
    assert main(["doctor", *options]) == 0
    assert shown in capsys.readouterr().out
    monkeypatch.setattr(placement, "describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # once generate has chosen, and before it loads anything
        main(["generate", "a sign", "-o", str(tmp_path / "out.png"), *options])
    assert asked[0] == asked[1]


REFUSED = (
    "count 0",
    "count 65",
    "plan-rows 0",
    "temperature nan",
    "temperature -1",
    "top-p 0",
    "top-p 2",
    "cfg 0.5",
    "steps 0",
    "steps 1001",
    "seed 18446744073709551616",
    "step-cache 1",
    "guidance-interval 0.5 0.2",
    f"lora {LORA}",
    f"planner-file {LORA}",
    f"decoder-file {PLANNER}",
    "planner-int8 --planner-weights w4",
    "dtype int4",
    "offload never",
    "image WIDE",
)


@pytest.mark.parametrize("option", REFUSED)
def test_doctor_refuses_what_generate_refuses(option, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_placement,))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (500, 100)).save("WIDE", "PNG")
    options = ["--model", "small", "--device", "cpu", *f"--{option}".split()]
    assert main(["generate", "a sign", *options]) == 1
    said = capsys.readouterr().err.removeprefix("glm-image: ").strip()
    assert main(["doctor", *options]) == 1
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_release_has_about_9_and_7_billion_parameters():
    counts = dict(text.split() for _, text in reported(doctor.check_model_info))
    numbers = {name: int(count.replace(",", "")) for name, count in counts.items()}
    assert 9.0e9 < numbers["vision_language_encoder"] < 10.5e9
    assert 6.5e9 < numbers["transformer"] < 7.5e9


def test_a_check_that_falls_over_becomes_a_finding():
    def check_something_odd(_):
        raise ZeroDivisionError("by nought")
        yield

    (finding,) = guarded(check_something_odd, CONTEXT)
    assert finding == CheckResult("fail", "something odd", "ZeroDivisionError: by nought")


def test_a_failing_check_makes_the_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: iter([CheckResult("fail", "torch", "is not well")]),))
    assert main(["doctor"]) == 1
    assert "fail  torch           is not well" in capsys.readouterr().out


def test_torch_that_is_missing_is_named(installed):
    installed(torch=None)
    assert reported(software.check_torch) == [("fail", "not installed; pip install torch")]


def test_a_torch_npu_of_another_torch_is_explained_with_both_ways_out(installed):
    installed(torch="2.13.0+cpu", torch_npu="2.12.0")
    ((status, text),) = reported(software.check_torch_npu)
    assert status == "fail"
    for part in ("made for torch 2.12", "'torch-npu==2.13.*'", "'torch==2.12.*'", "AUTOLOAD=0"):
        assert part in text


def test_a_pair_that_aborts_is_explained_without_an_import_and_makes_the_exit_code_1(installed, monkeypatch, capsys):
    installed(torch="2.14.0", torch_npu="2.14.0", cuda="13.0")
    ((status, text),) = reported(software.check_torch_npu)
    assert status == "fail" and "\n" not in text
    for part in ("build for CUDA 13.0", "aborts the process", "pip install 'torch==2.12.0' 'torch-npu==2.12.0.post2'"):
        assert part in text
    monkeypatch.setattr(doctor, "CHECKS", (software.check_torch_npu,))
    assert main(["doctor"]) == 1
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        (Pair("2.14.0", "2.14.0", "13.0"), "aborts the process"),
        (Pair("2.13.0", "2.13.0", "13.0"), "aborts the process"),
        (Pair("2.13.0+cpu", "2.13.0"), None),
        (Pair("2.12.0", "2.12.0.post3", "13.0"), "aborts the process"),
        (Pair("2.12.0", "2.12.0.post2", "13.0"), None),
        (Pair("2.12.0", "2.12.0", "13.0"), None),
        (Pair("2.12.0+cpu", "2.12.0.post3"), None),
        (Pair("2.11.0", "2.11.0.post3", "13.0"), "aborts the process"),
        (Pair("2.10.0", "2.10.0.post7", "12.8"), "aborts the process"),
        (Pair("2.10.0", "2.10.0.post4", "12.8"), None),
        (Pair("2.11.0", "2.11.0.post2", "13.0"), None),
        (Pair("2.11.0", "2.12.0", "13.0"), "pip install --no-deps 'torch-npu==2.11.*,<2.11.0.post3'"),
        (Pair("2.9.0", "2.12.0", "12.8"), "pip install --no-deps 'torch-npu==2.9.*', or 'torch"),
        (Pair("2.7.1", "2.7.1.post8", "12.6"), None),
        (Pair("2.14.0", "2.12.0", None), "made for torch 2.12"),
        (Pair("2.14.0", None, "13.0"), None),
        (Pair(None, None), None),
    ],
)
def test_pairs_that_start_and_pairs_that_do_not(pair, fault):
    assert (pair.fault is None) if fault is None else fault in pair.fault


@pytest.mark.parametrize(
    ("line", "cuda"), [("cuda: Optional[str] = '12.8'", "12.8"), ("cuda = '13.0'", "13.0"), ("cuda = None", None)]
)
def test_the_build_of_torch_is_read_from_its_version_file(monkeypatch, tmp_path, line, cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.14.0'\n{line}\nhip = None\n")
    spec = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(npu_pairs.importlib.util, "find_spec", lambda _: spec)
    assert npu_pairs.cuda_of_torch() == cuda


def test_an_import_that_ends_its_process_is_reported(monkeypatch, tmp_path):
    (tmp_path / "dies.py").write_text(r"import os; os.write(2, b'Error: key exists\n'); os.abort()")
    (tmp_path / "fails.py").write_text("raise OSError('libhccl.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert software.import_error("dies") == "the process was aborted by signal 6 (Error: key exists)"
    assert software.import_error("fails") == "OSError: libhccl.so: cannot open"
    assert software.import_error("json") is None


def test_a_torch_npu_that_aborts_for_another_reason_is_explained(installed):
    installed(torch="2.12.0", torch_npu="2.12.0", error="the process was aborted by signal 6 (what(): odd)")
    status, text = reported(software.check_torch_npu)[0]
    assert status == "fail" and "ends the process" in text and "what(): odd" in text


def test_a_machine_with_cann_is_told_to_install_torch_npu(installed, monkeypatch, tmp_path):
    installed()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    ((status, text),) = reported(software.check_torch_npu)
    assert status == "warn" and "pip install 'torch-npu==2.13.*'" in text


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("version.cfg", "runtime_running_version=[9.1.0:8.5.0]", "9.1.0"),
        ("aarch64-linux/ascend_toolkit_install.info", "package_name=Ascend\nversion=8.5.0\n", "8.5.0"),
        ("compiler/version.info", "Version=8.3.RC1\n", "8.3.RC1"),
    ],
)
def test_the_version_of_cann_is_read_from_its_files(tmp_path, file, text, version):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert software.cann_version(tmp_path) == version


@pytest.mark.parametrize(("cann", "status"), [("9.1.0", "ok"), ("8.5.0", "warn")])
def test_torch_npu_and_cann_are_checked_as_a_pair(installed, monkeypatch, tmp_path, cann, status):
    installed(torch="2.12.0", torch_npu="2.12.0")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    (tmp_path / "version.cfg").write_text(f"version={cann}\n")
    ((got, text),) = reported(software.check_cann)
    assert got == status and cann in text


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ImportError("libtorch_npu.so: undefined symbol: _ZN3c10"), "do not belong together"),
        (RuntimeError("ASCEND_OPP_PATH is wrong"), "installed in part"),
        (OSError("the disk is tired"), "cannot be imported: the disk is tired"),
    ],
)
def test_an_import_that_fails_is_explained(error, part):
    assert part in explain_npu_failure(error)


def test_a_torch_npu_that_breaks_torch_itself_is_explained_and_the_cpu_still_works(tmp_path):
    """A package of that name with torch's autoload entry point, as the real one has, whose import fails.

    It is of the installed torch's version, which beside a build for CUDA may be explained as a pair that aborts.
    """
    pair = Pair(torch.__version__, f"{npu_pairs.minor(torch.__version__)}.0", npu_pairs.cuda_of_torch())
    error = "ImportError('libhccl.so: cannot open shared object file')"
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(f"def _autoload(): pass\nraise {error}\n")
    about = tmp_path / f"torch_npu-{pair.torch_npu}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {pair.torch_npu}\n")
    (about / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)

    code = (
        "import sys; sys.path.insert(0, 'tests'); import conftest\n"
        "from comfyui_glm_image.cli.main import main\n"
        "code = main(['doctor', '--json'])\n"
        "from comfyui_glm_image.pipeline.devices.device import resolve_device\n"
        "print(code, resolve_device('auto'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *report, last = done.stdout.splitlines()
    assert last == "1 cpu"
    findings = json.loads("\n".join(report))["findings"]
    text = next(f["text"] for f in findings if f["topic"] == "torch_npu" and f["status"] == "fail")
    words = ("cannot start beside",) if pair.aborts else ("cannot find CANN", "set_env.sh")
    assert all(part in text for part in words)
    assert any(f["topic"] == "autoload" for f in findings)
    assert any(f["topic"] == "kernel" and f["status"] == "ok" for f in findings)
    assert "running on the CPU" in done.stderr
