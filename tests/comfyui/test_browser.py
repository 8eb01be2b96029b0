"""ComfyUI's page in Chromium: every workflow dropped on it as a file and as a saved picture, queued and looked at."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from comfyui_glm_image.tests.comfyui.test_workflows import FILES, RUNNABLE, SMALL
from comfyui_glm_image.tools import browser
from comfyui_glm_image.tools.workflows import builder

DRIVER = Path(__file__).parent / "workflows_browser.mjs"
SECONDS = 900


@pytest.fixture(scope="module")
def drive(server, tmp_path_factory):
    """Files -> what the driver saw, one entry a file; pictures go to PICTURES if that is set."""
    if not browser.is_ready():
        pytest.skip("no Chromium and playwright-core; run 'python tools/browser.py'")
    pictures = os.environ.get("PICTURES") or str(tmp_path_factory.mktemp("pictures"))

    def run(files, queue: bool, mode="classic") -> dict[str, dict]:
        command = ["node", str(DRIVER), server.url, pictures, mode, *map(str, files)]
        environment = {**os.environ, **browser.settings(), "QUEUE": "yes" if queue else "no"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        return {Path(entry["file"]).stem: entry for entry in entries}

    return run


@pytest.fixture(scope="module")
def loaded(drive):
    return drive(FILES, queue=False)


def all_queued(drive, mode):
    if not SMALL.is_file():
        pytest.skip("checkpoints/small is not there")
    return drive(RUNNABLE, queue=True, mode=mode)


@pytest.fixture(scope="module")
def queued(drive):
    return all_queued(drive, "classic")


@pytest.fixture(scope="module")
def queued_on_nodes_2(drive):
    return all_queued(drive, "vue")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_dropped_workflow_has_no_missing_node_and_no_error(loaded, path):
    seen = loaded[path.stem]
    assert seen["missing"] == []
    assert seen["errors"] == []
    assert seen["nodes"] == len(builder.load(path)["nodes"])


def read_layout(inputs):
    """Inputs with a layout's text as what it says: the page writes JSON without the spaces of the file."""
    text = inputs.get("layout")
    return {**inputs, "layout": json.loads(text)} if isinstance(text, str) and text.startswith("{") else inputs


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_page_queues_what_the_tests_queue(server, loaded, path):
    """`tools.workflows` turns files into prompts as the page does, but for widgets that only the page knows."""
    ours = builder.to_api(builder.load(path), server.get("/object_info"))
    page = loaded[path.stem]["api"]
    assert page.keys() == ours.keys()
    for key, node in ours.items():
        assert page[key]["class_type"] == node["class_type"]
        asked = {name: page[key]["inputs"].get(name) for name in node["inputs"]}
        assert read_layout(asked) == read_layout(node["inputs"])


def test_no_template_opens_with_a_dialog(loaded):
    """That of missing models knows single .safetensors files only; running the graph gives the download command."""
    for path in FILES:
        assert loaded[path.stem]["dialogs"] == [], path.stem


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_a_queued_workflow_shows_its_picture(queued, path):
    seen = queued[path.stem]
    if any("no OCR engine" in message for message in seen["messages"]):
        pytest.skip("no OCR engine beside ComfyUI")
    assert seen["status"] == "success", seen["messages"]
    assert seen["saved"] and seen["shown"]
    assert seen["errors"] == []


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_no_node_lies_on_another_once_pictures_and_texts_are_shown(queued, path):
    assert queued[path.stem]["overlaps"] == []


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_no_node_lies_on_another_on_nodes_2_either(queued_on_nodes_2, path):
    seen = queued_on_nodes_2[path.stem]
    assert seen["overlaps"] == [] == seen["errors"]


def test_a_saved_picture_brings_its_graph_back(server, drive, loaded, queued):
    pictures = {}
    for path in RUNNABLE:
        for image in queued[path.stem]["saved"][:1]:
            pictures[path.stem] = server.base / "output" / image["subfolder"] / image["filename"]
    dropped = drive(pictures.values(), queue=False)
    assert pictures
    for name, file in pictures.items():
        assert dropped[file.stem]["nodes"] == loaded[name]["nodes"]
        assert dropped[file.stem]["api"] == queued[name]["api"]
        assert dropped[file.stem]["missing"] == [] == dropped[file.stem]["errors"]
