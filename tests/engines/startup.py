"""Imported at every start of an engine's Python, by a .pth file: what the engine needs to run without a GPU.

vLLM-Omni's torchvision has no CPU build. SGLang calls two fused operators that the package sgl-kernel brings for CUDA
alone; its own plain torch versions take their place. vLLM-Omni's VAE and glyph encoder are read in float32, since
convolutions in bfloat16 take a hundred times as long on a CPU without instructions for it. Nothing else is changed.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

LAYERS = "sglang.multimodal_gen.runtime.layers.layernorm"
PIPELINE = "vllm_omni.diffusion.models.glm_image.pipeline_glm_image"
MODULATION = "sglang.kernels.ops.diffusion.modulate.scale_shift_triton"


def declare_operators() -> None:
    """Give torchvision's operators their names, without which its Python part cannot be imported."""
    spec = PathFinder.find_spec("torchvision")
    if spec is None or list(Path(spec.origin).parent.glob("_C*.so")):
        return  # its own library does so
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def use_native_layers(module) -> None:
    for layer in (module._ScaleResidualNormScaleShift, module._NormScaleShift):
        layer.forward_cpu = layer.forward_native


def use_plain_modulation(module) -> None:
    def scale_shift(x, scale, shift, scale_constant=1.0, block_l=128, block_c=128):
        return x * (scale_constant + scale) + shift

    module.fuse_scale_shift_kernel = scale_shift


def read_in_float32(module) -> None:
    for name in ("AutoencoderKL", "T5EncoderModel"):
        setattr(module, name, SimpleNamespace(from_pretrained=_in_float32(getattr(module, name))))


def _in_float32(kind):
    def from_pretrained(*given, **more):
        return kind.from_pretrained(*given, **more).float()

    return from_pretrained


_KEPT: list = []
BEFORE = {"torchvision": declare_operators}
AFTER = {LAYERS: use_native_layers, MODULATION: use_plain_modulation, PIPELINE: read_in_float32}


class _Patched(Loader):
    """A module's own loader, and a change of the module once it is executed."""

    def __init__(self, loader, change):
        self._loader, self._change = loader, change

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        self._change(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in BEFORE:
            BEFORE.pop(name)()
        if name in AFTER and (spec := PathFinder.find_spec(name, path)):
            spec.loader = _Patched(spec.loader, AFTER[name])
            return spec
        return None


sys.meta_path.insert(0, _Finder())
