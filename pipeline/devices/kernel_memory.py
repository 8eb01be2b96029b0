"""What the kernels of a device take besides their inputs and results, in bytes: for estimates before loading."""

import torch

from .capabilities import capabilities

SCORES = 1 << 30  # that attention which is spelled out may take at once, where so many queries suffice
QUERIES = (64, 512)  # fewest and most of them at once
SCORE = 10  # of one score at the most: in float32 before and after the softmax, and in half precision
ROTATED = {True: 8, False: 16}  # of a number while rotary positions are applied, by a fused kernel or not


def queries_at_once(scores: int) -> int:
    """Of how many queries attention that is spelled out takes the scores together, where each has so many."""
    return min(max(SCORES // (SCORE * scores), QUERIES[0]), QUERIES[1])


def attention_nbytes(device: torch.device, heads: int, queries: int, keys: int) -> int:
    """Of the scores of so many heads, those of a whole batch: none where a kernel never keeps them."""
    if device.type != "npu" or capabilities(device).fused:
        return 0
    return SCORE * heads * keys * min(queries, queries_at_once(heads * keys))


def rotary_nbytes(device: torch.device) -> int:
    """Of one number of queries or keys."""
    return ROTATED[device.type == "npu" and capabilities(device).fused]


def widened_nbytes(device: torch.device, form: str | None, numbers: int, dtype: torch.dtype) -> int:
    """Of a layer's weights in 8 or 4 bits, which a product of many rows needs wide where no kernel reads codes."""
    if form is None or device.type == "npu" and dtype != torch.float32:
        return 0
    return numbers * {"w8": 2 * dtype.itemsize, "w4": 1 + dtype.itemsize}[form]
