"""Loads this tree as the package `comfyui_glm_image`, whatever the folder is called or pip has installed."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "comfyui_glm_image", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_glm_image"] = module
    spec.loader.exec_module(module)


_load_package()


@pytest.fixture(scope="session")
def reference_module():
    """tests/reference/build.py, which needs transformers and diffusers (the `test` extra)."""
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("reference_build", ROOT / "tests" / "reference" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def references(reference_module, tmp_path_factory):
    """shape name -> (checkpoint folder, diffusers pipeline of the same weights), each made once."""

    @functools.cache
    def make(name: str):
        folder = tmp_path_factory.mktemp("reference") / name
        return folder, reference_module.build(folder, reference_module.SHAPES[name])

    return make


@pytest.fixture(scope="session", params=["plain", "wide", "deep"])
def reference(request, references):
    """(checkpoint folder, diffusers pipeline) for each of three configurations."""
    return references(request.param)
