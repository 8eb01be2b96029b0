"""ComfyUI's layer classes for our modules: weights may be stored in another dtype, patched or offloaded."""

import comfy.ops
import torch

from ...pipeline.devices import kernels


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
