"""Every workflow in workflows/ on a real server, and the files that go with them: pictures, locales, help."""

import re
from urllib.error import HTTPError
from urllib.parse import quote

import numpy as np
import pytest
import torch
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tools import locales
from comfyui_glm_image.tools.comfyui import ROOT
from comfyui_glm_image.tools.workflows import builder, catalog, space
from comfyui_glm_image.training import negative_lora
from PIL import Image
from safetensors.torch import load_file

FILES = builder.workflow_files()
RUNNABLE = [builder.FOLDER / f"{example.name}.json" for example in catalog.EXAMPLES if example.small]
SMALL = builder.ROOT / "checkpoints" / "small" / "model_index.json"


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


def nodes_of(path) -> list[dict]:
    return [node for node in builder.load(path)["nodes"] if node["type"] not in builder.NOTES]


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_a_workflow_runs_as_it_comes(server, object_info, path):
    prompt = builder.to_api(builder.load(path), object_info)
    try:
        outputs = server.run(prompt)
    except PromptError as error:
        if "no OCR engine" in error.text:
            pytest.skip("no OCR engine beside ComfyUI; the graph ran up to reading its pictures")
        raise
    saved = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
    assert saved
    for image in saved:
        picture = Image.open(server.base / "output" / image["subfolder"] / image["filename"])
        assert np.asarray(picture).std() > 0
        assert "workflow" in picture.info or "prompt" in picture.info


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_workflow_says_where_its_nodes_come_from(server, object_info, path):
    for node in nodes_of(path):
        assert node["type"] in object_info, node["type"]
        assert node["properties"]["cnr_id"] == ("comfyui-glm-image" if "GLMImage" in node["type"] else "comfy-core")
        assert node["properties"]["ver"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_widget_values_are_ones_the_node_offers(server, object_info, path):
    prompt = builder.to_api(builder.load(path), object_info)
    for node in prompt.values():
        info = object_info[node["class_type"]]["input"]
        declared = {**info.get("required", {}), **info.get("optional", {})}
        for name, value in node["inputs"].items():
            options = declared[name][1] if len(declared[name]) > 1 else {}
            choices = declared[name][0] if isinstance(declared[name][0], list) else options.get("options")
            if choices and not isinstance(value, list):
                assert value in choices, (node["class_type"], name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_workflow_has_a_picture(path):
    assert max(Image.open(path.with_suffix(".jpg")).size) == builder.THUMBNAIL


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_node_has_the_room_that_it_needs_after_a_run(object_info, path):
    nodes = builder.load(path)["nodes"]
    for node in nodes:
        if node["type"] not in builder.NOTES:
            width, height = space.needed(node["type"], object_info[node["type"]], node.get("title", ""))
            assert node["size"][0] >= width and node["size"][1] >= height, node["type"]
    assert space.overlaps(nodes) == []


def test_nodes_that_touch_overlap_and_nodes_side_by_side_do_not():
    node = {"id": 1, "pos": [0, 0], "size": [100, 50]}
    assert space.overlaps([node, {"id": 2, "pos": [0, 70], "size": [100, 50]}]) == [(2, 1)]  # its title reaches 40
    assert space.overlaps([node, {"id": 2, "pos": [0, 80], "size": [100, 50]}]) == []
    assert space.overlaps([node, {"id": 2, "pos": [100, 0], "size": [100, 50]}]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_workflow_has_notes_in_both_languages(path):
    notes = {node["title"]: node["widgets_values"][0] for node in builder.load(path)["nodes"] if "Note" in node["type"]}
    assert notes.keys() == {catalog.ENGLISH, catalog.CHINESE}
    assert re.search("[\u4e00-\u9fff]{4}", notes[catalog.CHINESE]) and notes[catalog.ENGLISH].isascii()
    assert "`" not in "".join(notes.values())  # unreadable with Nodes 2.0


def test_names_count_the_templates_and_say_what_one_needs():
    for number, example in enumerate(catalog.EXAMPLES, 1):
        assert example.name.startswith(f"{number:02} ")
        assert example.runs == ("(" not in example.name)
    assert {example.name for example in catalog.EXAMPLES} == {path.stem for path in FILES}


def test_every_workflow_is_offered_as_a_template_with_its_picture(server):
    offered = server.get("/workflow_templates")["ComfyUI-GLM-Image"]
    assert {path.stem for path in FILES} <= set(offered)
    for path in FILES:
        picture = quote(f"/api/workflow_templates/ComfyUI-GLM-Image/{path.stem}.jpg")
        assert server.fetch(picture) == path.with_suffix(".jpg").read_bytes()


@pytest.mark.parametrize("kind", ["json", "jpg"])
def test_templates_of_the_first_version_answer_to_their_old_names(server, kind):
    for example in catalog.EXAMPLES:
        address = f"/api/workflow_templates/ComfyUI-GLM-Image/{example.key}.{kind}"
        if example.new:
            with pytest.raises(HTTPError, match="404"):
                server.fetch(address)
        else:
            assert server.fetch(address) == (builder.FOLDER / f"{example.name}.{kind}").read_bytes()


def test_the_examples_are_what_their_script_builds(server, object_info):
    """Up to the version of the nodes they were built against."""
    versions = {builder.PACK: "0", "comfy-core": "0"}
    for name, built in catalog.build(object_info, versions).items():
        file = builder.to_api(builder.load(builder.FOLDER / f"{name}.json"), object_info)
        assert file == builder.to_api(built, object_info), f"{name}: run python -m tools.workflows build URL"


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
def test_the_example_lora_belongs_to_the_small_checkpoint():
    weights = load_file(SMALL.parent / "transformer" / "diffusion_pytorch_model.safetensors")
    shipped = load_file(negative_lora.FILE)
    for key, wanted in negative_lora.negative(weights).items():
        assert torch.equal(shipped[key], wanted.half()), "run python -m comfyui_glm_image.training.negative_lora"


def test_english_is_what_the_nodes_say(object_info):
    assert locales.read("en", "nodeDefs") == locales.node_texts(object_info), "run python tools/locales.py URL"


@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_chinese_has_every_text(name):
    english, chinese = (locales.keys(locales.read(language, name)) for language in ("en", "zh"))
    assert english == chinese


def test_the_server_hands_the_languages_out(server):
    texts = server.get("/i18n")
    assert texts["zh"]["nodeDefs"]["GLMImagePlan"]["display_name"] == "GLM-Image 规划"


def test_every_widget_of_every_node_is_explained(object_info):
    bare = [
        f"{name}.{entry}"
        for name, texts in locales.node_texts(object_info).items()
        for entry, text in texts["inputs"].items()
        if "tooltip" not in text and builder.is_widget(*declared_as(object_info[name], entry))
    ]
    assert not bare


def declared_as(info, entry: str) -> tuple:
    kind, *options = {**info["input"].get("required", {}), **info["input"].get("optional", {})}[entry]
    return kind, options[0] if options else {}


def test_every_node_has_a_help_page_that_names_its_inputs(object_info):
    for name, texts in locales.node_texts(object_info).items():
        page = ROOT / "js" / "docs" / f"{name}.md"
        assert page.is_file(), page
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {texts['display_name']}\n")
        if "/layout" not in object_info[name]["category"] and name != "GLMImageRemote":
            named = set(re.findall(r"`(\w+)`", text))
            assert set(texts["inputs"]) <= named | {n for n in texts["inputs"] if n.startswith("reference_")}, name
