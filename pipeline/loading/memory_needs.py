"""What a checkpoint's components need: bytes of their weights, and of the work of running them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch

from ..devices.quantised_products import GROUP
from ..models import planner, released, vae, weight_forms
from ..models.config import DitConfig, VaeConfig, VisionLanguageConfig
from .checkpoint import COMPONENTS, DECODER, GLYPH, NO_FILES, PLANNER, VAE, Checkpoint
from .weights import Weights
from .work_needs import HOST, ONE_IMAGE, ImageBatch, decoder_work, encoder_work, planner_work, vae_work, vision_work

SMALLEST_STACK = 3  # fewer numbered parts are a feed-forward's two halves, not layers
NOTHING: Mapping = MappingProxyType({})
ON_HOST = {PLANNER: planner.ON_HOST, VAE: vae.ON_HOST}  # beginnings of keys that stay there beside an accelerator


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes of each component: all `weights`, those of its repeated `layers`, the largest `layer`, and the `work` of
    running it besides its weights; and bytes of host memory that `opening` the checkpoint takes. `on_host` are bytes of
    weights that stay there where a component is on an accelerator. `passes` through all layers make an image. What is
    `in_files` waits in mapped files, which takes no memory that others could not have.
    """

    weights: Mapping[str, int]
    layers: Mapping[str, int]
    layer: Mapping[str, int]
    work: Mapping[str, int]
    opening: int = 0
    on_host: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)
    in_files: frozenset[str] = frozenset()

    def with_loras(self, name: str, size: int) -> "MemoryNeeds":
        """With so many bytes of LoRAs beside a component's weights."""
        return replace(self, weights={**self.weights, name: self.weights[name] + size})


@dataclass(frozen=True)
class CheckpointSizes:
    """What sizes follow from: numbers in every tensor of each component, the configurations, and the files: the dtypes
    of the components, `codes`, bytes of what lies there in 8 or 4 bits and stays so, which `forms` those are, and which
    components are `widened` from other formats.
    """

    numbers: Mapping[str, Mapping[str, int]]
    planner: VisionLanguageConfig
    decoder: DitConfig
    vae: VaeConfig
    files: Mapping[str, torch.dtype]
    codes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    widened: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: Path, files: Mapping[str, Path] = NO_FILES) -> "CheckpointSizes":
        """A checkpoint's, from its JSON and weight headers alone; `files` as in `Checkpoint`."""
        checkpoint = Checkpoint(folder, folder.name, files=files)
        weights = {name: checkpoint.weights(name) for name in COMPONENTS}
        return cls(
            {name: _numbers(weights[name]) for name in COMPONENTS},
            VisionLanguageConfig.from_json(folder / PLANNER / "config.json"),
            DitConfig.from_json(folder / DECODER / "config.json"),
            VaeConfig.from_json(folder / VAE / "config.json"),
            {name: weights[name].dtype for name in COMPONENTS},
            {name: _codes(weights[name]) for name in COMPONENTS},
            {name: form for name in COMPONENTS if (form := weights[name].form)},
            frozenset(name for name in COMPONENTS if not all(map(weights[name].maps, weights[name].headers))),
        )

    @classmethod
    def of_release(cls) -> "CheckpointSizes":
        """The release's, without its files."""
        numbers = {
            name: {key: tensor.numel() for key, tensor in module.state_dict().items()}
            for name, module in released.meta_modules().items()
        }
        files = dict.fromkeys(COMPONENTS, torch.bfloat16)
        return cls(numbers, released.VISION_LANGUAGE, released.DIT, released.VAE, files)


def _numbers(weights: Weights) -> dict[str, int]:
    return {key: torch.Size(shape).numel() for key, (_, shape, *_) in weights.headers.items()}


def _codes(weights: Weights) -> dict[str, int]:
    return {f"{layer}.weight": weights.headers[f"{layer}.weight"][3] for layer in weights.forms}


def memory_needs(
    model: CheckpointSizes,
    dtypes: Mapping[str, torch.dtype],
    images: ImageBatch = ONE_IMAGE,
    *,
    stored: Mapping[str, torch.dtype] = NOTHING,
    forms: Mapping[str, str] = NOTHING,
    batched: bool = True,
    devices: Mapping[str, torch.device] = NOTHING,
    apart: bool = True,
) -> MemoryNeeds:
    """What these images take; `stored` and `forms` as in `Placement`, `batched` guidance or not.

    `devices` whose kernels do the work. `apart`: ON_HOST's parts stay in host memory beside an accelerator, and visit
    it when references are read.
    """
    sizes = {
        name: _sizes(model.numbers[name], stored.get(name, dtypes[name]), forms.get(name))
        | dict(model.codes.get(name, NOTHING))
        for name in COMPONENTS
    }
    staying = {name: {k: n for k, n in sizes[name].items() if k.startswith(keys)} for name, keys in ON_HOST.items()}
    layers = {
        name: _layers({k: n for k, n in sizes[name].items() if k not in staying.get(name, NOTHING)})
        for name in COMPONENTS
    }
    on_host = {name: sum(found.values()) for name, found in staying.items()} if apart else {}
    text = model.planner.text_config
    rows = text.vision_vocab_size * text.hidden_size * stored.get(PLANNER, dtypes[PLANNER]).itemsize
    visitors = {name: _visiting(staying[name]) if apart else 0 for name in ON_HOST}
    return MemoryNeeds(
        weights={name: sum(sizes[name].values()) for name in COMPONENTS},
        layers={name: sum(layers[name]) for name in COMPONENTS},
        layer={name: max(layers[name], default=0) for name in COMPONENTS},
        work=_work(model, dtypes, images, forms, batched, devices, visitors),
        on_host=on_host | ({PLANNER: on_host[PLANNER] - rows} if apart else {}),
        passes={PLANNER: images.planned, DECODER: images.steps * (1 if batched or images.guidance == "off" else 2)},
    )


def _work(model: CheckpointSizes, dtypes, images: ImageBatch, forms, batched, devices, visitors) -> dict[str, int]:
    """Bytes of each component's work; `visitors` are those of weights that come to its device for references."""
    own = dict(model.forms) | dict(forms)
    where = {name: devices.get(name, HOST) for name in COMPONENTS}
    planning = planner_work(model.planner, dtypes[PLANNER], images, where[PLANNER], own.get(PLANNER))
    decoding = vae_work(model.vae, dtypes[VAE], images)
    if images.references:
        vision = vision_work(model.planner, dtypes[PLANNER], images, where[PLANNER])
        planning = max(planning, visitors[PLANNER] + vision)
        decoding = max(decoding, visitors[VAE] + encoder_work(model.vae, dtypes[VAE], images))
    return {
        PLANNER: planning,
        GLYPH: 0,  # short texts; counted with the decoder's
        DECODER: decoder_work(model.decoder, dtypes[DECODER], images, batched, where[DECODER], own.get(DECODER)),
        VAE: decoding,
    }


def _visiting(staying: Mapping[str, int]) -> int:
    """Bytes of what is brought to a device for references: all that stays in host memory but the embeddings of text."""
    return sum(n for key, n in staying.items() if "embed_tokens" not in key)


def _sizes(numbers: Mapping[str, int], dtype: torch.dtype, form: str | None) -> dict[str, int]:
    """Bytes of every tensor, those of layers that are rounded to 8 or 4 bits by their own form."""
    sizes = {key: n * dtype.itemsize for key, n in numbers.items()}
    for key, n in numbers.items() if form else ():
        layer, _, name = key.rpartition(".")
        if own := name == "weight" and weight_forms.layer_form(form, layer, 2 * GROUP):
            sizes[key] = weight_forms.nbytes(own, n, dtype)
    return sizes


def _layers(sizes: Mapping[str, int]) -> list[int]:
    """Sizes of the repeated layers, which can be loaded one by one: `model.language_model.layers.17.*` is one."""
    stacks: dict[str, dict[str, int]] = {}
    for key, size in sizes.items():
        parts = key.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is not None:
            stack = stacks.setdefault(".".join(parts[:number]), {})
            stack[parts[number]] = stack.get(parts[number], 0) + size
    return [size for stack in stacks.values() if len(stack) >= SMALLEST_STACK for size in stack.values()]
