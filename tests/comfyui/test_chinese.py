"""ComfyUI's page in Chinese, in Chromium: names, labels, choices, what nodes say, refusals and errors."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from comfyui_glm_image.tests.comfyui.test_workflows import SMALL
from comfyui_glm_image.tools import browser, locales
from comfyui_glm_image.tools.workflows import builder, catalog

DRIVER = Path(__file__).parent / "chinese_browser.mjs"
NAME = next(example.name for example in catalog.EXAMPLES if example.key == "glm_image_devices")
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module", params=["classic", "vue"])
def seen(request, server, tmp_path_factory):
    if not browser.is_ready():
        pytest.skip("no Chromium and playwright-core; run 'python tools/browser.py'")
    if not SMALL.is_file():
        pytest.skip("checkpoints/small is not there")
    pictures = os.environ.get("PICTURES") or str(tmp_path_factory.mktemp("pictures"))
    command = ["node", str(DRIVER), server.url, request.param, pictures, str(builder.FOLDER / f"{NAME}.json")]
    environment = {**os.environ, **browser.settings()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ours(seen):
    """This pack's nodes on the page, by type."""
    return {node["type"]: node for node in seen["nodes"] if "GLMImage" in node["type"]}


def test_nodes_and_their_sockets_and_fields_have_the_names_of_the_locale(seen, ours):
    assert seen["status"] == "success" and seen["errors"] == []
    chinese = locales.read("zh", "nodeDefs")
    for kind, node in ours.items():
        names = chinese[kind]
        assert node["title"] == names["display_name"]
        assert set(node["inputs"]) <= {entry["name"] for entry in names["inputs"].values()}
        assert node["outputs"] == [names["outputs"][str(i)]["name"] for i in range(len(node["outputs"]))]
        for name, (label, _) in node["widgets"].items():
            assert label == names["inputs"].get(name, {"name": label})["name"]


def test_choices_are_chinese(ours):
    fields = ours["GLMImageDevices"]["widgets"]
    assert fields["model"][1] == "small（自带）" and fields["planner_device"][1] == "自动"
    assert ours["GLMImageConditioning"]["widgets"]["glyph_mode"][1] == "prompt_order（提示词顺序）"


def test_what_nodes_say_is_chinese(ours):
    kinds = "GLMImageDevices", "GLMImagePlan", "GLMImageConditioning"
    devices, plan, texts = (ours[kind]["widgets"]["glm_image_message"][1] for kind in kinds)
    lines = devices.splitlines()
    assert lines[0].startswith("small（自带），1 张图像，192x96 像素：") and all(map(CHINESE.search, lines[:2]))
    assert any(line.startswith("  字形编码器  cpu") for line in lines)
    assert (plan, texts) == ("192x96 像素", "文字：HELLO")


def test_a_refused_graph_says_so_in_chinese(seen):
    (refused,) = [entry for entry in json.loads(seen["refused"]).values() if entry["class_type"] == "GLMImagePlan"]
    assert [error["details"] for error in refused["errors"]] == ["提示词是空的；请描述图像，要绘制的文字放在引号里"]


def test_an_error_is_chinese_where_the_page_shows_it(seen):
    assert seen["third"] == "error"
    assert seen["failed"] == "数量 -5 超出范围；请用 1 到 64 的整数"
    assert "is out of range" not in seen["dialog"]
