"""The decoder by torch.compile: the same picture, and refused at once where it cannot be."""

import shutil

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import DeviceError, InputError
from comfyui_glm_image.pipeline.loading import components
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER
from comfyui_glm_image.pipeline.loading.placement import Placement
from torch.testing import assert_close

CPU = torch.device("cpu")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_compiled_blocks_draw_the_same(references):
    folder, _ = references("plain")
    plain, compiled = (GlmImage.from_pretrained(folder, device="cpu", compile=c) for c in (False, True))
    plan = plain.plan("a 'HI' sign", 64, 96, temperature=0)
    assert_close(compiled.denoise(plan, 3), plain.denoise(plan, 3), atol=1e-5, rtol=1e-5)
    blocks = compiled.transformer.transformer_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert compiled.transformer.state_dict().keys() == plain.transformer.state_dict().keys()


def test_a_missing_compiler_is_told_before_anything_is_loaded(references, monkeypatch):
    def no_compiler(_):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmany more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(DeviceError, match=r"does not work on cpu \(InvalidCxxCompiler.*found\); it needs a C\+\+"):
        GlmImage.from_pretrained(references("plain")[0], device="cpu", compile=True)


def test_layers_that_stream_are_not_compiled(references, monkeypatch):
    monkeypatch.setattr(components, "require_compiler", lambda _: None)
    streamed = Placement(dict.fromkeys(("a",), CPU), {}, streamed={DECODER: 0})
    with pytest.raises(InputError, match="layers that stream cannot be compiled"):
        GlmImage.from_pretrained(references("plain")[0], placement=streamed, compile=True)
