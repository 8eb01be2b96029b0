"""What `make test-lowest` installs is what pyproject.toml states."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROJECT = """
[project]
requires-python = ">=3.10"
dependencies = [
    "torch>=2.6",
    "huggingface-hub>=0.25",  # a comment
]

[project.optional-dependencies]
ocr = ["pytesseract>=0.3.10"]
plots = ["matplotlib>=3.8"]
gguf = ["gguf>=0.17.1"]  # a comment
test = [
    "pytest>=8",
    "transformers==5.23.0",
]
"""


@pytest.fixture(scope="module")
def versions():
    spec = importlib.util.spec_from_file_location("versions_run", HERE / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_bound_is_read(versions):
    needed = {"torch": "2.6", "huggingface-hub": "0.25"}
    wanted = needed | {"pytesseract": "0.3.10", "matplotlib": "3.8", "gguf": "0.17.1", "pytest": "8"}
    assert versions.requirements(PROJECT) == wanted


def test_no_dependency_of_this_project_is_without_a_lowest_version(versions):
    project = (versions.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = (versions.ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert {line.split(">=")[0] for line in required} < versions.requirements(project).keys()


def test_another_version_than_the_stated_one_is_noticed(versions):
    stated = {"torch": "2.6", "pytest": "8", "numpy": "1.26"}
    assert versions.untrue(stated, {"torch": "2.6.0+cu124", "pytest": "8.0.0", "numpy": "1.26.0"}) == []
    assert versions.untrue(stated, {"torch": "2.6.1", "pytest": "8.0.0", "numpy": "1.26.4"}) == [
        "torch 2.6.1",
        "numpy 1.26.4",
    ]


def test_a_missing_interpreter_and_a_full_disk_skip(versions, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(versions.Skipped, match="need Python 3.10, which is not installed"):
        versions.lowest_python(PROJECT)
    monkeypatch.setattr(versions, "ROOM", 1 << 60)
    with pytest.raises(versions.Skipped, match="of disk, and less is free"):
        versions.install("python3", tmp_path / "env", [])


def test_of_cuda_only_the_runtime_is_installed(versions):
    needs = ["filelock", "nvidia-cublas-cu12==12.4.5.8; x", "nvidia-cuda-runtime-cu12==12.4.127; x", "triton==3.2.0"]
    assert versions.without_cuda(needs) == ["filelock", "nvidia-cuda-runtime-cu12==12.4.127; x"]
