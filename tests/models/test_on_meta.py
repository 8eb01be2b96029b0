"""Networks without memory: what their tensors are, and what is not imported for them."""

import subprocess
import sys

import torch
from comfyui_glm_image.pipeline.models.on_meta import on_meta
from comfyui_glm_image.tests.conftest import ROOT

OPEN = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from comfyui_glm_image.pipeline import GlmImage
model = GlmImage.from_pretrained("small", device="cpu")
parts = model.planner, model.glyph_encoder, model.transformer, model.vae
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_modules_have_names_and_shapes_and_no_memory():
    with on_meta():
        module = torch.nn.Sequential(
            torch.nn.Embedding(8, 4, padding_idx=0), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == {"0.weight": (8, 4), "1.weight": (3, 4), "1.bias": (3,), "2.weight": (3,), "2.bias": (3,)}
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert torch.nn.Embedding(8, 4).weight.std() > 0 and torch.nn.Linear(4, 3).weight.std() > 0  # filled again


def test_opening_a_checkpoint_does_not_import_torchs_compiler():
    code = OPEN.format(tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
