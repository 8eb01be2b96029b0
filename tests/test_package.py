"""The package as a whole: what it imports, and what importing it costs."""

import ast
import re
import subprocess
import sys

import pytest
from comfyui_glm_image.tests.conftest import ROOT

FOREIGN = {"transformers", "diffusers", "accelerate", "comfy_kitchen"}
OUR_CODE = [
    ROOT / "__init__.py",
    ROOT / "__main__.py",
    *(ROOT / "pipeline").rglob("*.py"),
    *(ROOT / "nodes").rglob("*.py"),
    *(ROOT / "cli").rglob("*.py"),
]


def imported(path):
    """Top-level names that a file imports absolutely, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def is_peer_comparison(path):
    """`bench --peer` and `compare` run the reference libraries on purpose."""
    return path.relative_to(ROOT / "pipeline").as_posix() in ("benchmark/peers.py", "device_check/reference_pair.py")


@pytest.mark.parametrize("path", OUR_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_needs_the_reference_libraries(path):
    if not path.is_relative_to(ROOT / "pipeline") or not is_peer_comparison(path):
        assert not FOREIGN & set(imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.name)
def test_the_pipeline_knows_nothing_of_comfyui(path):
    assert not {"comfy", "folder_paths", "nodes", "comfy_api", "server"} & set(imported(path))


def run(code):
    setup = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True).stdout


LOAD = f"""
import importlib.util, time
start = time.process_time()
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
import pack.pipeline, pack.cli.main
print(time.process_time() - start)
print(sorted({{"torch", "numpy", "PIL", "transformers", "diffusers", "comfy"}} & set(sys.modules)))
"""


def test_importing_the_package_is_instant_and_imports_no_torch():
    """The bound of 0.2 s is the promise; the figure is processor time so that a busy machine does not break it."""
    seconds, modules = run(LOAD).splitlines()
    assert modules == "[]"
    assert float(seconds) < 0.2


def test_a_picture_needs_none_of_the_reference_libraries():
    code = """
import conftest
from comfyui_glm_image.cli.main import main
import comfyui_glm_image.pipeline.glm_image
print(sorted({"transformers", "diffusers", "accelerate"} & set(sys.modules)))
"""
    assert run(code).strip() == "[]"


def test_the_entry_point_is_declared_and_nothing_of_the_old_interface():
    import asyncio

    import comfyui_glm_image as pack

    assert pack.WEB_DIRECTORY == "./js"
    assert asyncio.iscoroutinefunction(pack.comfy_entrypoint)
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")  # ComfyUI would ignore the entry point


def test_the_packs_requirements_are_the_packages_without_torch():
    """ComfyUI has its torch; a pack that names it can move it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    needed = re.findall(r'"(.+?)"', listed)
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert sorted(required) == sorted(name for name in needed if not name.startswith("torch"))


def test_the_remote_client_needs_no_torch():
    """Who only asks servers need not load it, which takes seconds."""
    code = LOAD + "import pack.pipeline.remote\nprint(sorted({'torch', 'jinja2', 'tokenizers'} & set(sys.modules)))"
    assert run(code).splitlines()[2:] == ["[]"]
