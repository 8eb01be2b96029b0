"""One token for each image of a batch: a step that runs eagerly, or as a captured graph.

Shapes: B images, N tokens to plan, V codebook size, S cache slots read.
"""

import torch

from ..loading.work_needs import NOISE_ROWS
from ..models.config import GenerationConfig
from ..models.kv_cache import bucket_length
from ..models.planner import Planner
from ..models.planner_cpu import CpuDecode
from .controls import FREE, Steering, add_bias
from .prefill import Prefix
from .sampling import Noise, choose

NOTHING = Steering()


class Step:
    """What steps of one token and of several have in common: a cache, and buffers with `room` behind the last token.

    `start` rewrites them in place for another prompt, seed or control, since captured graphs read fixed addresses.
    """

    def __init__(
        self,
        planner: Planner,
        sampling: GenerationConfig,
        *,
        batch: int,
        capacity: int,
        planned: int,
        device: torch.device | str,
        room: int = 0,
    ):
        self.planner, self.sampling, self.planned = planner, sampling, planned
        self.codebook = planner.config.vq_config.num_embeddings
        self.cache = planner.new_cache(batch, capacity, device)
        self.forced = torch.full((batch, planned + room), FREE, device=device)
        self.biased = torch.zeros_like(self.forced)
        self.bias = torch.zeros(batch, planned + room, device=device)
        self.visible = torch.ones(batch, 1, 1, capacity, dtype=torch.bool, device=device)
        self.slots = torch.arange(capacity, device=device)
        self.offset = torch.zeros(1, dtype=torch.long, device=device)  # the slot of token 0, on the device
        self.length = 0  # the same as a Python int
        self.padded = False
        self.steering = NOTHING
        self.fast: CpuDecode | None = None  # the planner's pass, where there is a faster form

    @property
    def batch(self) -> int:
        return self.cache.batch

    @property
    def device(self) -> torch.device:
        return self.slots.device

    def start(self, prefix: Prefix, steering: Steering = NOTHING) -> None:
        """Copy in a prefix (of one prompt for all images, or of one for each) and what is imposed on the plan."""
        prompts = prefix.batch
        self.cache.take_prefix(prefix.cache, prefix.length)
        self.length, self.padded, self.steering = prefix.length, prompts.padded, steering
        self.offset.fill_(prefix.length)
        self.visible.fill_(True)
        self.visible[..., : prefix.length] = prompts.mask[:, None, None].to(self.device)
        self.forced.fill_(FREE)
        self.bias.zero_()
        buffers = {"forced": self.forced, "biased": self.biased, "bias": self.bias}
        for name, buffer in buffers.items():
            given = getattr(steering, name)
            if given is not None:
                buffer[:, : self.planned].copy_(given)


class DecodeStep(Step):
    """One token for each image: the planner, the choice of a token, and every buffer they use.

    Nothing in a step depends on a value on the device and no shape changes, so `captured` can become a graph: it
    takes its position from `index` and moves it on. `eager` does the same for a Python position and reads exactly
    the slots in use.
    """

    rows = 1

    def __init__(self, planner: Planner, sampling: GenerationConfig, **sizes):
        super().__init__(planner, sampling, **sizes)
        text, device = planner.config.text_config, self.device
        self.tokens = torch.zeros(self.batch, self.planned, dtype=torch.long, device=device)
        rotary = int(text.head_dim * text.rope_parameters.partial_rotary_factor)
        self.tables = tuple(torch.zeros(self.batch, 1, self.planned, rotary, device=device) for _ in range(2))
        self.index = torch.ones(1, dtype=torch.long, device=device)  # the token a captured step plans
        block = (min(NOISE_ROWS, self.planned), self.batch, self.codebook)
        self.noise = None if sampling.temperature == 0 else torch.zeros(block, device=device)

    def start(self, prefix: Prefix, steering: Steering = NOTHING) -> None:
        super().start(prefix, steering)
        self.index.fill_(1)
        for table, new in zip(self.tables, self.planner.rope_tables(prefix.batch.decode_positions)):
            table.copy_(new)
        suits = CpuDecode.suits(self.planner, self.device)
        self.fast = CpuDecode(self.planner, self.cache, self.tables) if suits else None

    def first(self, logits: torch.Tensor) -> None:
        """Choose token 0 from the prefix's logits (1 or B, V)."""
        self._choose(logits.expand(self.batch, -1), 0)

    def eager(self, k: int) -> None:
        """Plan token `k`, 1 or later, from token k - 1."""
        read = self.length + k
        mask = self.visible[..., :read] if self.padded else None
        if self.fast:
            logits = self.fast(self.tokens.select(1, k - 1), k - 1, mask, read - 1)
        else:
            tables = tuple(table.narrow(2, k - 1, 1) for table in self.tables)
            logits = self.planner(self.tokens.narrow(1, k - 1, 1), tables, mask, self.cache, read - 1, read)
        self._choose(logits, k)

    def captured(self, read: int) -> None:
        """Plan token `index` with the first `read` slots, `bucket_length(length + index, capacity)` or more."""
        last = self.index - 1
        slot = self.offset + last
        mask = self.visible[..., :read] & (self.slots[:read] <= slot)
        tables = tuple(table.index_select(2, last) for table in self.tables)
        logits = self.planner(self.tokens.index_select(1, last), tables, mask, self.cache, slot, read)
        self._choose(logits, self.index)
        self.index.add_(1)

    def bucket(self, k: int) -> int:
        """How many slots the captured step of token `k` reads."""
        return bucket_length(self.length + k, self.cache.capacity)

    def _choose(self, logits: torch.Tensor, k: int | torch.Tensor) -> None:
        """Write token `k` of every image from (B, V or more) logits."""
        logits, in_graph = logits[:, : self.codebook].float(), not isinstance(k, int)
        if in_graph or self.steering.bias is not None:
            logits = add_bias(logits, _column(self.biased, k), _column(self.bias, k))
        noise = None if self.noise is None else _column(self.noise.transpose(0, 1), k % NOISE_ROWS).squeeze(1)
        token = choose(logits, noise, self.sampling)[:, None]
        if in_graph or self.steering.forced is not None:
            forced = _column(self.forced, k)
            token = torch.where(forced == FREE, token, forced)
        if in_graph:
            self.tokens.index_copy_(1, k, token)
        else:
            self.tokens.narrow(1, k, 1).copy_(token)


def _column(table: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    return table.narrow(1, k, 1) if isinstance(k, int) else table.index_select(1, k)


class BlockNoise:
    """Keeps the noise of a `DecodeStep` ahead of it, made while the device is busy and sent without waiting."""

    def __init__(self, step: DecodeStep, seeds):
        self.step, self.noise = step, Noise(seeds, step.codebook)
        self.ready = self._make(0)

    def before(self, k: int) -> None:
        """Send the block that begins with token `k`, if one does."""
        if k % NOISE_ROWS == 0 and self.ready is not None:
            self.step.noise[: len(self.ready)].copy_(self.ready, non_blocking=True)

    def after(self, k: int) -> None:
        """Make the next block once token `k`, the last of one, is under way: before anything waits for the device."""
        if (k + 1) % NOISE_ROWS == 0:
            self.ready = self._make(k + 1)

    def _make(self, start: int) -> torch.Tensor | None:
        left = self.step.planned - start
        if self.step.noise is None or left <= 0:
            return None
        return sendable(self.noise.block(min(NOISE_ROWS, left)), self.step.device)


def sendable(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor as it can be sent without waiting: only pinned memory is copied while the device works."""
    return tensor if device.type == "cpu" else tensor.pin_memory()
