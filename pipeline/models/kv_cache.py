"""The planner's keys and values, allocated once and written in place.

Nothing is ever concatenated or moved: a step writes its token's keys at its own slot and reads the slots in use.
A position is a Python int (eager: the read covers exactly the used slots) or on the cache's device, where captured
graphs take it from: one element for all plans, or the slots of several tokens of each plan, which stand where it does.
The read then covers a fixed length, and the caller masks the slots not written yet.
Shapes: B batch, L slots, D head dim.
"""

import torch

from .config import TextConfig

BUCKET = 256  # slots; a captured step exists once for every multiple of this that a plan passes through


def bucket_length(used: int, capacity: int) -> int:
    """The smallest multiple of `BUCKET` that holds `used` slots, or the whole capacity."""
    return min(-(-used // BUCKET) * BUCKET, capacity)


def cache_nbytes(config: TextConfig, batch: int, capacity: int, dtype: torch.dtype) -> int:
    """Bytes that a cache of this size takes, for an estimate before anything is allocated."""
    return (
        2 * config.num_hidden_layers * batch * config.num_key_value_heads * capacity * config.head_dim * dtype.itemsize
    )


class KVCache:
    """`slots` are (layers, 2, B, kv_heads, L, D); `keys` and `values` are views of it without the 2."""

    def __init__(self, config: TextConfig, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, not empty: a captured step reads masked slots, and 0 * NaN would leave the mask.
        self.slots = torch.zeros(shape, dtype=dtype, device=device)
        self.keys, self.values = self.slots.unbind(1)

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, position: int | torch.Tensor, read: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, kv_heads, n, D) from slot `position` on -> that layer's first `read` slots, as views.

        A `position` of the shape of `keys` names each number's own slot.
        """
        cached = self.keys[layer], self.values[layer]
        for slots, new in zip(cached, (keys, values)):
            if isinstance(position, int):
                slots.narrow(2, position, new.shape[2]).copy_(new)
            elif position.ndim == 1:
                slots.index_copy_(2, position, new)
            else:
                slots.scatter_(2, position, new)
        return cached[0].narrow(2, 0, read), cached[1].narrow(2, 0, read)

    def take_prefix(self, other: "KVCache", length: int) -> None:
        """Copy the first `length` slots of another cache, repeating its one row over the batch if it has only one."""
        self.slots[..., :length, :] = other.slots[..., :length, :]
