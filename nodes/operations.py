"""ComfyUI's layer classes for our modules: weights may be stored in another dtype, patched or offloaded."""

import comfy.ops
import torch


def computing_in(dtype: torch.dtype, operations=comfy.ops.manual_cast):
    """`operations` whose embeddings come out in `dtype`, which every later layer takes over from its input."""

    class Operations(operations):
        class Embedding(operations.Embedding):
            def forward(self, ids):
                return super().forward(ids, out_dtype=dtype).to(dtype)

    return Operations
