"""Loads this tree as the package `comfyui_glm_image`, whatever the folder is called or pip has installed."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _load_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "comfyui_glm_image", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_glm_image"] = module
    spec.loader.exec_module(module)


_load_package()
