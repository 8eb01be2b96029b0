"""The server with the pack in it: it starts clean, knows every node, and offers what it can open."""

import os
import subprocess

import pytest
from comfyui_glm_image.tests.comfyui import graphs
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tools.comfyui import ROOT

IMPORT_SECONDS = 0.3

# Run by ComfyUI's own Python in its folder: seconds of the processor that importing the pack adds. Collecting garbage
# among all that ComfyUI holds takes as long again, and would fall into this time or not by chance.
TIME_IMPORT = """
import asyncio, gc, importlib.util, sys, time
root, sys.argv = sys.argv[1], ["main.py", "--cpu"]
sys.path.insert(0, "")
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, nodes, server, comfy_api.latest, comfy_execution.graph_utils
gc.disable()
start = time.process_time()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def nodes():
    return await (await pack.comfy_entrypoint()).get_node_list()
asyncio.run(nodes())
print(time.process_time() - start)
"""


def test_core_graph_runs(server):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0x3366CC}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "smoke"}},
    }
    (path,) = server.files(server.run(graph), "2")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_pack_loads_without_a_warning(server):
    start = server.log.split("got prompt")[0]
    lines = [line for line in start.splitlines() if "GLM" in line or "glm_image" in line]
    assert lines and "IMPORT FAILED" not in start
    assert not [line for line in lines if "warn" in line.lower() or "error" in line.lower()]
    assert "Traceback" not in start


def test_every_node_is_registered(server):
    known = {name for name in server.get("/object_info") if "GLMImage" in name}
    assert {"GLMImageLoader", "GLMImagePlan", "GLMImageConditioning", "GLMImageDecode", "EmptyGLMImageLatent"} <= known
    assert {"GLMImageSigmas", "ModelSamplingGLMImage", "GLMImageLoRA", "GLMImageSavePlan", "GLMImageLoadPlan"} <= known


def test_importing_the_pack_is_quick(install, tmp_path):
    """At every start but the first, which compiles the files."""
    kept = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [install.python, "-c", TIME_IMPORT, str(ROOT)]
    best = min(
        float(subprocess.run(command, cwd=install.app, capture_output=True, text=True, check=True, env=kept).stdout)
        for _ in range(3)
    )
    print(f"importing the pack: {best:.3f} s")
    assert best < IMPORT_SECONDS


def test_the_loader_offers_small_and_release_and_what_is_there(server, random_model):
    names = server.options("GLMImageLoader", "model")
    assert names[:2] == ["small (bundled)", "GLM-Image/model_index.json"]
    assert random_model in names


def test_a_model_that_is_not_there_says_how_to_get_it(server):
    graph = graphs.text_to_image("GLM-Image/model_index.json")
    with pytest.raises(PromptError, match="hf download zai-org/GLM-Image --local-dir") as error:
        server.run(graph)
    assert error.value.node == "load"
    assert "\n" not in error.value.text


def test_the_page_can_see_that_a_model_is_missing(server, random_model):
    """Its dialog compares a workflow's `models` with this list."""
    names = server.get("/models/glm_image")
    assert random_model in names
    assert "GLM-Image/model_index.json" not in names
