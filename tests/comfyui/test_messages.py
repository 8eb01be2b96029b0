"""What nodes say stays at them on the page: after the job, in a saved workflow, and until it is no longer true."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_glm_image.tests.comfyui.graphs import sampler, text_to_image
from comfyui_glm_image.tests.comfyui.test_devices import devices
from comfyui_glm_image.tools import browser

DRIVER = Path(__file__).parent / "messages_browser.mjs"


@pytest.fixture(scope="module", params=["classic", "vue"])
def seen(request, server, random_model, tmp_path_factory):
    if not browser.is_ready():
        pytest.skip("no Chromium and playwright-core; run 'python tools/browser.py'")
    graph = text_to_image(random_model) | {"devices": devices(random_model), "sample": sampler("ddpm", "simple", 2)}
    pictures = os.environ.get("PICTURES") or str(tmp_path_factory.mktemp("pictures"))
    command = ["node", str(DRIVER), server.url, request.param, pictures, json.dumps(graph)]
    environment = {**os.environ, **browser.settings()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nodes_say_what_they_found_after_the_job(seen):
    assert seen["status"] == "success" and seen["errors"] == []
    said = seen["after"]
    assert "random, 1 image of 96x64 px: fits" in said["GLMImageDevices"]
    assert said["GLMImageConditioning"] == "texts: OPEN"
    assert said["KSampler"].startswith("sampler ddpm misses")
    assert any("sampler ddpm misses" in text for text in seen["toasts"])
    assert seen["fields"] and all(seen["fields"])  # read-only


def test_a_saved_workflow_brings_them_back_and_its_values_keep_their_places(seen):
    assert seen["reloaded"] == seen["after"]
    assert seen["values"]
    assert "glm_image_message" not in seen["sent"]


def test_a_warning_goes_when_its_reason_does(seen):
    assert seen["second"] == "success"
    assert "KSampler" not in seen["mended"] and "GLMImageDevices" in seen["mended"]
