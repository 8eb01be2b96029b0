"""Tests on NPUs: run by `make test-npu` on the stand-in CANN runtime, or by pytest on a machine with a real card."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HAVE_TORCH_NPU = importlib.util.find_spec("torch_npu") is not None
collect_ignore_glob = [] if HAVE_TORCH_NPU else ["test_*.py"]


@pytest.fixture(scope="session")
def npu():
    """The first NPU."""
    import torch

    if not torch.npu.is_available():
        pytest.skip("torch_npu sees no device")
    return torch.device("npu:0")


@pytest.fixture(scope="session")
def cann():
    """The stand-in's Python side, which counts; skips on a real card."""
    sys.path.append(str(ROOT / "tests" / "fake_cann" / "python"))
    try:
        import fake_cann
    except (OSError, AttributeError):
        pytest.skip("counts come from the stand-in CANN runtime")
    return fake_cann


@pytest.fixture
def run_python(cann):
    """Runs code in a fresh process with other FAKE_CANN_* settings, which are read once; returns its output.

    An empty setting takes the variable away.
    """

    def run(code: str, **settings: str) -> subprocess.CompletedProcess:
        setup = "import sys; sys.path.insert(0, 'tests'); import conftest; sys.path.append('tests/fake_cann/python')\n"
        changed = {name.upper(): value for name, value in settings.items()}
        environment = {name: value for name, value in {**os.environ, **changed}.items() if value}
        return subprocess.run(
            [sys.executable, "-c", setup + code], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    return run
