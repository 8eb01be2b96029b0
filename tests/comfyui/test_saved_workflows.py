"""Workflows as version 0.1.0 saved them open with the same values, are valid, and run.

Files of a released version are never changed; a new version adds its own.
"""

from pathlib import Path

import pytest
from comfyui_glm_image.tests.comfyui.test_workflows import SMALL
from comfyui_glm_image.tools.workflows import builder

FOLDER = Path(__file__).parent / "saved_workflows"
FILES = builder.workflow_files(FOLDER)
RUN = [FOLDER / f"glm_image_{name}.json" for name in ("text_to_image", "poster_with_layout", "two_references", "lora")]
AFTER_A_SEED = ("fixed", "increment", "decrement", "randomize")


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


def values_as_saved(node: dict) -> dict:
    """Widget values by the names that the file itself gives; what the page keeps after a seed belongs to no name."""
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    values, found = iter(node.get("widgets_values") or []), {}
    for name in names:
        found[name] = next(values)
        if name in builder.SEEDS:
            assert next(values) in AFTER_A_SEED
    assert not list(values)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_widget_and_link_of_a_saved_workflow_is_what_it_was(object_info, path):
    workflow = builder.load(path)
    prompt = builder.to_api(workflow, object_info)
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for node in workflow["nodes"]:
        if node["type"] in builder.NOTES:
            continue
        wanted = values_as_saved(node)
        wanted |= {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry.get("link")}
        inputs = prompt[str(node["id"])]["inputs"]
        assert {name: inputs[name] for name in wanted} == wanted, node["type"]
        if "GLMImage" in node["type"]:
            outputs = [(entry["name"], entry["type"]) for entry in node["outputs"]]
            info = object_info[node["type"]]
            assert list(zip(info["output_name"], info["output"]))[: len(outputs)] == outputs


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_values_of_a_saved_workflow_are_still_accepted(object_info, path):
    for node in builder.to_api(builder.load(path), object_info).values():
        info = object_info[node["class_type"]]["input"]
        declared = {**info.get("required", {}), **info.get("optional", {})}
        for name, value in node["inputs"].items():
            options = declared[name][1] if len(declared[name]) > 1 else {}
            choices = declared[name][0] if isinstance(declared[name][0], list) else options.get("options")
            if not isinstance(value, list):
                assert not choices or value in choices, (node["class_type"], name)
                assert value is None or not options.get("min", value) > value
                assert value is None or not options.get("max", value) < value


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_a_saved_workflow_runs(server, object_info, path):
    outputs = server.run(builder.to_api(builder.load(path), object_info))
    assert [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
