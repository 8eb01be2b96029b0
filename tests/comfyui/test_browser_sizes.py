"""Sizes that follow on ComfyUI's page, in both of its forms: a plan's with its model, a latent's with its plan."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_glm_image.tools import browser

DRIVER = Path(__file__).parent / "sizes_browser.mjs"


@pytest.fixture(scope="module", params=["classic", "vue"])
def seen(request, server):
    if not browser.is_ready():
        pytest.skip("no Chromium and playwright-core; run 'python tools/browser.py'")
    command = ["node", str(DRIVER), server.url, request.param]
    environment = {**os.environ, **browser.settings()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_new_plan_takes_a_size_that_its_model_knows(seen):
    assert seen["new"] == [1024, 1024]
    assert seen["connected"] == [192, 96]
    assert seen["release"] == [1024, 1024]
    assert seen["chosen"] == [768, 512]


def test_an_empty_latent_shows_its_plans_size_in_fields_that_cannot_be_changed(seen):
    assert seen["latent"] == {"size": [768, 512], "disabled": [True, True]}
    assert seen["resized"]["size"] == [384, 256]
    assert seen["disconnected"]["disabled"] == [False, False]


def test_loading_a_graph_changes_no_size(seen):
    assert seen["loaded"] == [1024, 1024]


def test_the_packs_sockets_have_colours_of_their_own(seen):
    colours = seen["colours"]
    assert len(set(colours.values())) == len(colours) == 5
    assert all(colours.values())
    assert seen["after_palette"] == colours
    assert seen["errors"] == []
