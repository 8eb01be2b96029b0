"""The four networks of a checkpoint: each loaded when first used, where its placement says, and released again."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ..devices.device import current, require_compiler
from ..devices.layer_offload import offload_layers
from ..devices.memory import empty_cache, explaining_out_of_memory
from ..devices.quantised_products import check_form
from ..errors import InputError
from ..models.config import DitConfig, GlyphConfig, VaeConfig, VisionLanguageConfig
from ..models.glyph_encoder import GlyphEncoder
from ..models.lora import apply_loras
from ..models.planner import Planner
from ..models.transformer import Dit
from ..models.vae import Vae
from ..models.weight_forms import CodedLinear, pack, warn_if_slow
from ..plan import UsedLora
from .checkpoint import DECODER, GLYPH, PLANNER, VAE, Checkpoint, title
from .lora_files import TARGETS, ComponentLoras, LoraFile, by_layer, check_strength, read_lora, used_loras
from .memory_needs import ON_HOST
from .placement import Placement
from .stored import check_rounding
from .weights import load_module, matching

MODULES = {  # folder -> (module, its configuration)
    PLANNER: (Planner, VisionLanguageConfig),
    GLYPH: (GlyphEncoder, GlyphConfig),
    DECODER: (Dit, DitConfig),
    VAE: (Vae, VaeConfig),
}


def check_files(checkpoint: Checkpoint) -> None:
    """Raise for single files that do not fit: chosen by hand, another component's is likelier than in a folder."""
    for name in checkpoint.files:
        module, config = MODULES[name]
        settings = config.from_json(checkpoint.component(name) / "config.json")
        matching(partial(module, settings), settings, checkpoint.weights(name))


class Components:
    """Modules of a checkpoint by their folder's name: `components[PLANNER]` loads the planner.

    `on_load(done, total, stage="load", component=NAME)` sees the bytes that were read, and may raise to interrupt.
    """

    def __init__(self, checkpoint: Checkpoint, placement: Placement, compile: bool = False):
        if compile:
            _check_compile(placement)
        self.checkpoint, self.placement, self.compile = checkpoint, placement, compile
        self.on_load: Callable[..., None] | None = None
        self.loras: dict[str, ComponentLoras] = {}
        self.loaded: dict[str, torch.nn.Module] = {}
        self.configs = {
            name: config.from_json(checkpoint.component(name) / "config.json") for name, (_, config) in MODULES.items()
        }
        check_files(checkpoint)
        for name, form in placement.forms.items():
            check_rounding(title(name), checkpoint.weights(name).form, form)

    def __getitem__(self, name: str) -> torch.nn.Module:
        if name not in self.loaded:
            with explaining_out_of_memory(f"the {title(name)}", self.placement.devices[name]):
                self.loaded[name] = self._load(name)
        return self.loaded[name]

    def _load(self, name: str) -> torch.nn.Module:
        device, streamed = self.placement.devices[name], name in self.placement.streamed
        module = self._read(name, torch.device("cpu") if streamed else device)
        apply_loras(module, by_layer(self.loras.get(name, ())))
        if name == PLANNER and not streamed:
            module.fuse()
        self._ready_rounded(name, module, device)
        if device.type != "cpu" and name in ON_HOST:
            module.leave_on_host(device)
        if streamed:
            staying = module.on_host if name == PLANNER else ()
            return offload_layers(module, device, self.placement.streamed[name], staying)
        if name == DECODER and self.compile:
            module.compile_blocks()
        return module

    def _ready_rounded(self, name: str, module: torch.nn.Module, device: torch.device) -> None:
        """What layers of 8 and 4 bits need to run well, and a warning where they cannot."""
        dtype = self.placement.dtypes[name]
        for form in {type(layer).form for layer in module.modules() if isinstance(layer, CodedLinear)}:
            check_form(form, device, dtype)
        if name == PLANNER or device.type == "npu":
            pack(module, device)
        if name == PLANNER:
            warn_if_slow(module, device, dtype)

    def _read(self, name: str, device: torch.device) -> torch.nn.Module:
        def progress(done: int, total: int) -> None:
            self.on_load(done, total, stage="load", component=name)

        weights, dtype = self.checkpoint.weights(name), self.placement.dtypes[name]
        on_host = ON_HOST.get(name, ()) if self.placement.devices[name].type != "cpu" else ()
        shown, form = progress if self.on_load else None, self.placement.forms.get(name)
        options = {"progress": shown, "form": form, "on_host": on_host}
        return load_module(MODULES[name][0], self.configs[name], weights, device, dtype, **options)

    def use_loras(self, name: str, files: Sequence[LoraFile]) -> bool:
        """Read and check files that change a component when it is next loaded -> whether others did before."""
        pairs = [file if isinstance(file, (tuple, list)) else (file, 1.0) for file in files]
        strengths = [check_strength(strength) for _, strength in pairs]
        read = [read_lora(TARGETS[name], Path(path), self.configs[name]) for path, _ in pairs]
        before, self.loras[name] = self.used_loras(name), tuple(zip(read, strengths))
        return self.used_loras(name) != before

    def used_loras(self, name: str) -> tuple[UsedLora, ...]:
        """Those that change a component, as plans and images note them."""
        return used_loras(self.loras.get(name, ()))

    def release(self, *names: str) -> None:
        """Free modules, all without any name; what is not loaded is passed over."""
        for name in names or tuple(MODULES):
            if name not in MODULES:
                raise InputError(f"there is no component {name!r}; use {', '.join(MODULES)}")
            if self.loaded.pop(name, None) is not None:
                empty_cache(self.placement.devices[name])

    @contextlib.contextmanager
    def on_device(self, name: str) -> Iterator[torch.device]:
        """Make a component's device the current one, without gradients."""
        device = self.placement.devices[name]
        with torch.no_grad(), current(device):
            yield device


def _check_compile(placement: Placement) -> None:
    if DECODER in placement.streamed:
        raise InputError("compile needs a decoder that stays on its device; layers that stream cannot be compiled")
    require_compiler(placement.devices[DECODER])
