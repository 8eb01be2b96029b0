"""What training a LoRA takes, from sizes alone, before a weight is read."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...pipeline.devices.memory import memory_of
from ...pipeline.errors import InputError
from ...pipeline.geometry import TOKEN, patch_count, preview_grid
from ...pipeline.loading.checkpoint import PLANNER
from ...pipeline.loading.memory_needs import ON_HOST, CheckpointSizes
from ...pipeline.loading.placement import HEADROOM, gib
from ...pipeline.loading.work_needs import GLYPH_TOKENS, ImageBatch, vision_work
from ...pipeline.models.planner import VISION
from ...pipeline.text import shown
from .layers import LOGITS, keeps_attention
from .residuals import APART
from .settings import LoraSettings

PROMPT_TOKENS = 256  # of a caption
MASTER = 16  # bytes of a number of the adapter: itself, its gradient and two moments in float32
# Activations of a layer's width that are kept where layers are recomputed: of the planner, what both halves of a layer
# give and one input in a few, of the decoder the input.
KEPT = {"planner": 2 + 1 / APART, "decoder": 1}
STATISTICS = 64  # bytes that attention on an NPU gives of a token and a head besides its result; others give 4
ALLOCATOR = 1.15  # what a block is larger than asked for, on average


@dataclass(frozen=True)
class TrainingNeeds:
    """Bytes: while steps run, the `weights` of what is trained, `adapter` and `work`, and before that, in all, while a
    planner is `preparing` images. `layer` is what one of the `layers` that are recomputed takes where it is kept, as
    `keep` of them are; `first` is what is kept of all of them where one is.
    """

    preparing: int
    weights: int
    adapter: int
    work: int
    layer: int
    layers: int
    keep: int = 0
    first: int = 0

    @property
    def step(self) -> int:
        return self.work + self.keep * self.layer + (self.first if self.keep else 0)

    @property
    def training(self) -> int:
        return self.weights + self.adapter + self.step

    @property
    def total(self) -> int:
        return max(self.preparing, self.training)

    def as_text(self) -> str:
        kept = f" with {self.keep} of {self.layers} layers kept" if self.layers else ""
        parts = f"weights {gib(self.weights)}, adapter {gib(self.adapter)}, step {gib(self.step)}{kept}"
        if self.preparing > self.training:
            return f"{gib(self.preparing)} to prepare images, then {gib(self.training)}: {parts}"
        return f"{gib(self.training)}: {parts}"


def training_needs(
    sizes: CheckpointSizes, settings: LoraSettings, dtype: torch.dtype, grid: tuple[int, int], device: torch.device
) -> TrainingNeeds:
    """For images of `grid`, the largest."""
    planner = settings.component == "planner"
    weights = _planner_weights(sizes, device) if planner else sum(sizes.numbers[settings.folder].values())
    weights *= dtype.itemsize
    preparing = weights + _vision(sizes, dtype, grid, device) if planner else 0
    *parts, layers = (_planner_work if planner else _decoder_work)(sizes, settings, dtype, grid)
    work, layer, first = (int(ALLOCATOR * part) for part in parts)
    adapter, recomputed = MASTER * _adapter_numbers(sizes, settings), layers if settings.checkpointing else 0
    keep = min(settings.keep_layers or 0, recomputed)
    return TrainingNeeds(preparing, weights, adapter, work, layer, recomputed, keep, first)


def check(folder: Path, settings: LoraSettings, device: torch.device, dtype: torch.dtype, grid) -> TrainingNeeds:
    """The needs, with as many layers kept as `settings` say or free memory has room for.

    Raises `InputError` where free memory does not suffice, unless the settings say to try anyway.
    """
    needs = training_needs(CheckpointSizes.of(folder), settings, dtype, grid, device)
    free = int(memory_of(device).free * (1 - HEADROOM))
    if needs.total > free and not settings.anyway:
        raise InputError(
            f"training needs about {needs.as_text()}; {device} has {gib(free)} free. Use a smaller --batch or --pixels"
            f"{'' if settings.checkpointing else ', leave --no-checkpointing away'}"
            f"{', fewer --keep-layers' if needs.keep else ''}, or --anyway to try"
        )
    if settings.keep_layers is None:
        needs = replace(needs, keep=max(0, min(needs.layers, (free - needs.training - needs.first) // needs.layer)))
    return needs


def _planner_weights(sizes: CheckpointSizes, device: torch.device) -> int:
    """Numbers of what a planner without its vision tokenizer has on the device: on an accelerator all but the
    embeddings of text.
    """
    text, numbers = sizes.planner.text_config, sizes.numbers[PLANNER]
    if device.type == "cpu":
        return sum(n for key, n in numbers.items() if not key.startswith(VISION))
    rows = text.vision_vocab_size * text.hidden_size
    return rows + sum(n for key, n in numbers.items() if not key.startswith(ON_HOST[PLANNER]))


def _vision(sizes: CheckpointSizes, dtype: torch.dtype, grid, device: torch.device) -> int:
    """Bytes of the vision tokenizer, and of turning an image of `grid` into tokens."""
    weights = sum(n for key, n in sizes.numbers[PLANNER].items() if key.startswith(VISION)) * dtype.itemsize
    return weights + vision_work(sizes.planner, dtype, ImageBatch(references=(grid,)), device)


def _adapter_numbers(sizes: CheckpointSizes, settings: LoraSettings) -> int:
    """Numbers of all adapted layers' matrices."""
    named = {key: n for key, n in sizes.numbers[settings.folder].items() if _is_adapted(key, settings)}
    if not named:
        raise InputError(f"the checkpoint has no layer {shown(settings.layers[0])}; is it GLM-Image?")
    width = _width(sizes, settings)
    return sum(settings.rank * (width + n // width) for n in named.values())


def _is_adapted(key: str, settings: LoraSettings) -> bool:
    return any(key.endswith(f".{name}.weight") for name in settings.layers)


def _width(sizes: CheckpointSizes, settings: LoraSettings) -> int:
    return sizes.planner.text_config.hidden_size if settings.component == "planner" else sizes.decoder.inner_dim


def _planner_work(sizes: CheckpointSizes, settings: LoraSettings, dtype: torch.dtype, grid) -> tuple[int, ...]:
    """Bytes of a step, of a layer's feed-forward that is kept, of all layers' attention that is kept with the first,
    and how many layers there are to recompute.
    """
    text = sizes.planner.text_config
    length = PROMPT_TOKENS + math.prod(grid) + math.prod(preview_grid(*grid))
    tokens, recomputed = settings.batch * length, text.num_hidden_layers - 1
    half = 2 * (4 * text.intermediate_size + 10 * text.hidden_size)  # a half layer and its gradients
    layers = KEPT["planner"] * text.hidden_size * text.num_hidden_layers + APART * text.hidden_size
    if not settings.checkpointing:
        layers = half * text.num_hidden_layers
    kept = 2 * text.intermediate_size + 2 * text.hidden_size
    step = tokens * (layers + half) * dtype.itemsize + 3 * LOGITS * 4
    attended = tokens * (text.hidden_size * dtype.itemsize + STATISTICS * text.num_attention_heads)
    first = recomputed * attended if keeps_attention(length, text.hidden_size) else 0
    return step, tokens * kept * dtype.itemsize, first, recomputed


def _decoder_work(sizes: CheckpointSizes, settings: LoraSettings, dtype: torch.dtype, grid) -> tuple[int, ...]:
    """Bytes of a step, of a block that is kept, nothing besides, and how many blocks there are to recompute."""
    config = sizes.decoder
    tokens = settings.batch * (GLYPH_TOKENS + patch_count(*(TOKEN * side for side in grid)))
    block = config.inner_dim * (40 * dtype.itemsize + 16)  # a block, its gradients, float32 copies for rotation
    layers = KEPT["decoder"] * config.inner_dim * dtype.itemsize if settings.checkpointing else block
    return tokens * (layers * config.num_layers + block), tokens * block, 0, config.num_layers
