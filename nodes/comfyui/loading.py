"""Opening the parts of a checkpoint for ComfyUI: lazily, in the dtype that fits, under its memory management.

Weights are mapped from disk and read when a layer first runs, unless they have to change their dtype. Layers are
ComfyUI's, so that parts may be loaded in pieces; what a device cannot hold stays in host memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

from ...pipeline.devices.capabilities import resolve_dtype
from ...pipeline.devices.device import resolve_device
from ...pipeline.loading.checkpoint import Weights, compare
from ...pipeline.models.config import GenerationConfig, GlyphConfig, ProcessorConfig, VisionLanguageConfig
from ...pipeline.models.glyph_encoder import GlyphEncoder
from ...pipeline.models.kv_cache import KVCache
from ...pipeline.models.planner import Planner
from ...pipeline.planning.make_plan import PlannerSettings
from ...pipeline.planning.prompt import PromptEncoder
from .ops import computing_in

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
SMALL = 2 << 30  # bytes; below this, weights are stored as they are computed with: casting at every use costs more


@dataclass(frozen=True)
class Dtypes:
    """How weights lie in memory and what layers compute in."""

    storage: torch.dtype
    compute: torch.dtype

    @property
    def operations(self):
        cast = self.storage != self.compute
        return computing_in(self.compute, comfy.ops.manual_cast if cast else comfy.ops.disable_weight_init)


@dataclass(frozen=True)
class Devices:
    """Socket value: the name of a device for each part; `auto` is where ComfyUI computes."""

    planner: str
    decoder: str
    glyph_encoder: str
    vae: str

    @classmethod
    def one(cls, device: str) -> "Devices":
        return cls(device, device, device, device)


def choose_device(choice: str, own: Callable = comfy.model_management.get_torch_device) -> torch.device:
    """ComfyUI's `own` device, or one that the user names; an NPU is set up for this package on the way."""
    if choice != "auto":
        return resolve_device(choice)
    device = own()
    return resolve_device(device) if device.type == "npu" else device


def choose_dtypes(choice: str, weights: Weights, device: torch.device) -> Dtypes:
    """The dtypes of weights from these files, as `dtypes_for` chooses them."""
    return dtypes_for(choice, weights.dtype, weights.nbytes // weights.dtype.itemsize, device)


def dtypes_for(choice: str, stored: torch.dtype, numbers: int, device: torch.device) -> Dtypes:
    """`auto` computes in the device's best dtype and stores many numbers as their file does where that is smaller.

    A named dtype is used for both; an 8-bit one only stores. One that the device lacks is an error.
    """
    auto = resolve_dtype("auto", device, stored=stored)
    if choice != "auto":
        storage = DTYPES[choice]
        return Dtypes(storage, resolve_dtype(storage, device) if storage.itemsize > 1 else auto)
    if stored.itemsize == 1 or (stored.itemsize < auto.itemsize and numbers * auto.itemsize > SMALL):
        return Dtypes(stored, auto)
    return Dtypes(auto, auto)


class WeightFile(Weights):
    """One safetensors file instead of a component folder; a prefix that checkpoints of one file have is dropped."""

    prefixes = ("model.diffusion_model.", "diffusion_model.")

    @property
    def shards(self) -> list[Path]:
        return [self.folder]

    @cached_property
    def headers(self):
        return {self._name(key): entry for key, entry in super().headers.items()}

    def tensors(self):
        for key, tensor in super().tensors():
            yield self._name(key), tensor

    def _name(self, key: str) -> str:
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        return key


def weights_at(path: Path) -> Weights:
    return Weights(path) if path.is_dir() else WeightFile(path)


def fill(module: torch.nn.Module, weights: Weights, dtypes: Dtypes, plain: Callable) -> torch.nn.Module:
    """Give a module of the meta device its weights, all of them and no other; names and shapes are compared first.

    `plain()` builds the same module of torch's layers: ComfyUI's may have no weights before they are loaded.
    """
    with torch.device("meta"):
        compare(plain(), weights)
    state = {key: stored(tensor, dtypes) for key, tensor in weights.tensors()}
    module.load_state_dict(state, strict=True, assign=True)
    if hasattr(comfy.model_management, "archive_model_dtypes"):  # newer than 0.3.75, which notes dtypes as built
        comfy.model_management.archive_model_dtypes(module)
    return module.eval().requires_grad_(False)


def stored(tensor: torch.Tensor, dtypes: Dtypes) -> torch.Tensor:
    """A weight in the dtype it is kept in; norms and biases are too small to pay for the errors of 8 bits."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(dtypes.compute if dtypes.storage.itemsize == 1 and tensor.ndim < 2 else dtypes.storage)


def manage(module: torch.nn.Module, device: torch.device, offload: torch.device | None = None):
    """Put a module under ComfyUI's memory management; `offload` is where it waits, by default where decoders do.

    A part that never leaves the card, as ComfyUI's options may want it, stays on its own and not on ComfyUI's.
    """
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    offload = offload or comfy.model_management.unet_offload_device()
    return kind(module, load_device=device, offload_device=offload if offload.type == "cpu" else device)


def open_part(build: Callable, config, path: Path, dtype: str, device: str):
    """A component's folder or file -> (patcher around its module, its dtypes); no weight is read yet."""
    weights, load_device = weights_at(path), choose_device(device)
    dtypes = choose_dtypes(dtype, weights, load_device)
    with torch.device("meta"):
        module = build(config, operations=dtypes.operations, dtype=dtypes.storage)
    return manage(fill(module, weights, dtypes, lambda: build(config)), load_device), dtypes


class ManagedPlanner(Planner):
    """A planner whose layers may be elsewhere or in another dtype than its computation."""

    compute_dtype: torch.dtype

    def new_cache(self, batch: int, capacity: int, device: torch.device) -> KVCache:
        return KVCache(self.config.text_config, batch, capacity, dtype=self.compute_dtype, device=device)


class PlannerPart:
    """Socket value: the planner with its tokenizer and settings.

    `guide(part, grids)`, if a layout node has set it on a copy, gives controls for each grid of a plan. `plans`: the
    latest ones by the settings they were made with.
    """

    guide: Callable | None = None

    def __init__(self, folder: Path, dtype: str = "auto", device: str = "auto"):
        self.folder = folder
        home = folder / "vision_language_encoder"
        self.config = VisionLanguageConfig.from_json(home / "config.json")
        self.patcher, dtypes = open_part(ManagedPlanner, self.config, home, dtype, device)
        self.module.compute_dtype = dtypes.compute
        self.plans: dict = {}

    @property
    def module(self) -> ManagedPlanner:
        return self.patcher.model

    @property
    def codebook_size(self) -> int:
        return self.config.vq_config.num_embeddings

    @cached_property
    def codebook_colours(self) -> torch.Tensor:
        """(V, 3) uint8, a colour for every token. The planner must be loaded."""
        ids = torch.arange(self.codebook_size, device=self.patcher.load_device)
        with torch.no_grad():
            return codebook_colours(self.module.model.vqmodel.quantize.embedding(ids))

    @cached_property
    def settings(self) -> PlannerSettings:
        """The small files that planning needs besides the weights."""
        processor = self.folder / "processor"
        return PlannerSettings(
            self.config,
            GenerationConfig.from_json(self.folder / "vision_language_encoder" / "generation_config.json"),
            ProcessorConfig.from_folder(processor),
            PromptEncoder(processor, self.config),
        )


def codebook_colours(codebook: torch.Tensor) -> torch.Tensor:
    """(V, D) codebook -> (V, 3) uint8: its first three principal components as red, green and blue."""
    entries = codebook.float().cpu()
    _, directions = torch.linalg.eigh(torch.cov(entries.T))  # ascending
    parts = (entries - entries.mean(0)) @ directions[:, -3:].flip(1)
    low, high = torch.quantile(parts, torch.tensor([0.02, 0.98]), dim=0)
    return ((parts - low) / (high - low).clamp_min(1e-8) * 255).clamp(0, 255).to(torch.uint8)


class ManagedGlyphEncoder(GlyphEncoder):
    """A glyph encoder whose weights may wait on another device than it computes on."""

    compute_device: torch.device

    def where(self) -> torch.device:
        return self.compute_device


class GlyphEncoderPart:
    """Socket value: the encoder of the texts to draw."""

    def __init__(self, folder: Path, weights: Path, dtype: str = "auto", device: str = "auto"):
        config = GlyphConfig.from_json(folder / "text_encoder" / "config.json")
        self.patcher, _ = open_part(ManagedGlyphEncoder, config, weights, dtype, device)
        self.module.compute_device = self.patcher.load_device

    @property
    def module(self) -> ManagedGlyphEncoder:
        return self.patcher.model
