"""The planner and the glyph encoder under ComfyUI's memory management, as their sockets carry them."""

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import comfy.model_management
import torch

from ...pipeline.devices.device import current
from ...pipeline.geometry import TrainedSizes
from ...pipeline.loading.checkpoint import Checkpoint
from ...pipeline.loading.lora_files import ComponentLora, ComponentLoras, acting, used_loras
from ...pipeline.models.config import GlyphConfig, VisionLanguageConfig
from ...pipeline.models.glyph_encoder import GlyphEncoder
from ...pipeline.models.kv_cache import KVCache
from ...pipeline.models.planner import Planner
from ...pipeline.models.vision_tokenizer import all_rows
from ...pipeline.models.weight_forms import warn_if_slow
from ...pipeline.plan import UsedLora
from ...pipeline.planning.make_plan import PlannerSettings
from ...pipeline.planning.preview import token_colours
from .loading import open_part
from .planner_lora import with_loras


class ManagedPlanner(Planner):
    """A planner whose layers may be elsewhere or in another dtype than its computation."""

    compute_dtype: torch.dtype

    def new_cache(self, batch: int, capacity: int, device: torch.device) -> KVCache:
        return KVCache(self.config.text_config, batch, capacity, dtype=self.compute_dtype, device=device)


class PlannerPart:
    """Socket value: the planner with its tokenizer and settings.

    `guide(part, grids)` gives controls for each grid of a plan, if a layout steers it. `plans`: the latest ones by the
    settings they were made with, `loras` among them. All parts of one planner share weights and plans.
    """

    def __init__(self, folder: Path, weights: Path, dtype: str = "auto", device: str = "auto"):
        self.folder = folder
        self.config = VisionLanguageConfig.from_json(folder / "vision_language_encoder" / "config.json")
        self.patcher, dtypes = open_part(ManagedPlanner, self.config, weights, dtype, device)
        warn_if_slow(self.module, self.patcher.load_device, dtypes.compute)
        self.plain_patcher = self.patcher
        self.module.compute_dtype = dtypes.compute
        self.loras: ComponentLoras = ()
        self.guide: Callable | None = None
        self.plans: dict = {}

    def with_controls(self, guide: Callable) -> "PlannerPart":
        """The same planner, weights and all, whose plans `guide` steers."""
        guided = copy.copy(self)
        guided.guide = guide
        return guided

    def with_lora(self, lora: ComponentLora, strength: float) -> "PlannerPart":
        """The same planner with one LoRA more; its weights are patched when it is next loaded."""
        changed = copy.copy(self)
        changed.loras = acting((*self.loras, (lora, strength)))
        changed.patcher = with_loras(self.plain_patcher, changed.loras)
        return changed

    @property
    def used_loras(self) -> tuple[UsedLora, ...]:
        """As plans note them."""
        return used_loras(self.loras)

    @property
    def module(self) -> ManagedPlanner:
        return self.patcher.model

    @property
    def trained_sizes(self) -> TrainedSizes:
        return Checkpoint(self.folder, self.folder.name).trained_sizes

    @property
    def codebook_size(self) -> int:
        return self.config.vq_config.num_embeddings

    @cached_property
    def codebook_colours(self) -> torch.Tensor:
        """(V, 3) uint8, a colour for every token, fitted to what this planner's vision tokenizer sees."""
        comfy.model_management.load_models_gpu([self.patcher])
        device = self.patcher.load_device
        with torch.no_grad(), current(device):
            codebook = all_rows(self.module.model.vqmodel.quantize.embedding, device)
            return token_colours(self.module, codebook, self.settings.processor, device, self.module.compute_dtype)

    @cached_property
    def settings(self) -> PlannerSettings:
        """The small files that planning needs besides the weights."""
        return PlannerSettings.from_folder(self.folder)


class ManagedGlyphEncoder(GlyphEncoder):
    """A glyph encoder whose weights may wait on another device than it computes on."""

    compute_device: torch.device

    def where(self) -> torch.device:
        return self.compute_device


class GlyphEncoderPart:
    """Socket value: the encoder of the texts to render."""

    def __init__(self, folder: Path, weights: Path, dtype: str = "auto", device: str = "auto"):
        config = GlyphConfig.from_json(folder / "text_encoder" / "config.json")
        self.patcher, _ = open_part(ManagedGlyphEncoder, config, weights, dtype, device)
        self.module.compute_device = self.patcher.load_device

    @property
    def module(self) -> ManagedGlyphEncoder:
        return self.patcher.model
