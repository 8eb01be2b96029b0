#!/usr/bin/env bash
# NVFP4 has two dialects that no shape tells apart. comfy-kitchen (ComfyUI) puts the first of two numbers in the upper
# half of a byte, compressed-tensors (vLLM, Hugging Face) in the lower; both make uint8 of half the width. A file read
# by the other's rule loads without an error, with every pair of weights swapped.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.4 comfy-kitchen==0.2.40 compressed-tensors==0.20.0
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import comfy_kitchen
import torch
from compressed_tensors.compressors import pack_fp4_to_uint8

print("comfy-kitchen", version("comfy-kitchen"), "compressed-tensors", version("compressed-tensors"))
row = [0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6, 0]
weights = torch.tensor(row).repeat(16, 1)
ours = comfy_kitchen.quantize_nvfp4(weights, torch.tensor(1.0))[0].view(torch.uint8)
theirs = pack_fp4_to_uint8(weights.bfloat16()).view(torch.uint8)
for name, packed in (("comfy-kitchen", ours), ("compressed-tensors", theirs)):
    print(f"{name:20}", tuple(packed.shape), packed.dtype, " ".join(f"{byte:02x}" for byte in packed[0, :7].tolist()))
assert ours.shape == theirs.shape == (16, 8) and ours.dtype == theirs.dtype
swapped = (theirs[:, :7] << 4) | (theirs[:, :7] >> 4)
assert torch.equal(ours[:, :7], swapped) and not torch.equal(ours[:, :7], theirs[:, :7])
PY
