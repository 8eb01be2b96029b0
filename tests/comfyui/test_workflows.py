"""Every workflow in workflows/ on a real server, and the files that go with them: pictures, locales, help."""

import re

import numpy as np
import pytest
import torch
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tools import locales
from comfyui_glm_image.tools.comfyui import ROOT
from comfyui_glm_image.tools.workflows import builder, examples
from comfyui_glm_image.training import lora
from PIL import Image
from safetensors.torch import load_file

FILES = builder.workflow_files()
RUNNABLE = [p for p in FILES if p.stem not in examples.RELEASE_ONLY and "remote" not in p.stem]
EXAMPLES = {f"glm_image_{draw.__name__}" for draw in examples.WORKFLOWS}
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
    if path.stem in examples.RELEASE_ONLY:
        pytest.skip("needs the released model")
    picture = Image.open(path.with_suffix(".jpg"))
    assert max(picture.size) == builder.THUMBNAIL


def test_every_workflow_is_offered_as_a_template(server):
    offered = server.get("/workflow_templates")["ComfyUI-GLM-Image"]
    assert {path.stem for path in FILES} <= set(offered)
    assert server.fetch("/api/workflow_templates/ComfyUI-GLM-Image/glm_image_text_to_image.jpg")[:2] == b"\xff\xd8"


def test_the_examples_are_what_their_script_builds(server, object_info):
    """Up to the version of the nodes they were built against."""
    versions = {builder.PACK: "0", "comfy-core": "0"}
    for name, built in examples.build(object_info, versions).items():
        file = builder.to_api(builder.load(builder.FOLDER / f"{name}.json"), object_info)
        assert file == builder.to_api(built, object_info), f"{name}: run python -m tools.workflows build URL"


def test_the_release_is_named_for_the_dialog_of_missing_models():
    (loader,) = (n for n in nodes_of(builder.FOLDER / "glm_image_full_model.json") if n["type"] == "GLMImageLoader")
    (model,) = loader["properties"]["models"]
    assert model["name"] in loader["widgets_values"]
    assert model["directory"] == "glm_image"
    assert model["url"].startswith("https://huggingface.co/zai-org/GLM-Image/")


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
def test_the_example_lora_belongs_to_the_small_checkpoint():
    weights = load_file(SMALL.parent / "transformer" / "diffusion_pytorch_model.safetensors")
    shipped = load_file(lora.FILE)
    for key, wanted in lora.negative(weights).items():
        assert torch.equal(shipped[key], wanted.half()), "run python -m comfyui_glm_image.training.lora"


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
