"""ComfyUI's layer classes for our modules: weights may be stored in another dtype, patched or offloaded."""

import comfy.ops
import torch

from ...pipeline.devices import kernels
from ...pipeline.models.weight_forms import W4Linear, W8Linear


def computing_in(dtype: torch.dtype, operations=comfy.ops.manual_cast):
    """`operations` whose embeddings come out in `dtype`, which every later layer takes over from its input, and whose
    RMS norms are the device's own kernel wherever ComfyUI has nothing to do to their weights.
    """

    class Operations(operations):
        class Embedding(operations.Embedding):
            def forward(self, ids):
                return super().forward(ids, out_dtype=dtype).to(dtype)

        class RMSNorm(operations.RMSNorm):
            def forward(self, x):
                if self.comfy_cast_weights or self.weight_function:
                    return super().forward(x)
                return kernels.rms_norm(x, self.weight, self.eps)

    return Operations


class Waiting:
    """A layer of codes that may wait in host memory, as ComfyUI's own layers may: what it holds visits the input's
    device at every use. ComfyUI finds such layers by the attributes.
    """

    comfy_cast_weights = False
    weight_function, bias_function = (), ()

    def forward(self, x):
        if self.weight.device == x.device:
            return super().forward(x)
        visiting = {name: held.to(x.device, non_blocking=True) for name, held in self.named_parameters()}
        return torch.func.functional_call(self, visiting, (x,))


class WaitingW8(Waiting, W8Linear):
    pass


class WaitingW4(Waiting, W4Linear):
    pass


WAITING = {W8Linear: WaitingW8, W4Linear: WaitingW4}


def let_codes_wait(module: torch.nn.Module) -> None:
    """Let every layer of codes wait in host memory where a device cannot hold all layers."""
    for layer in module.modules():
        layer.__class__ = WAITING.get(type(layer), type(layer))
