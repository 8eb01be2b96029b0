"""What a checkpoint's components need: bytes of their weights, and of the work of running them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from ..devices.quantised_products import GROUP
from ..geometry import check_size, patch_count, preview_grid, token_grid
from ..models import planner, released, vae, weight_forms
from ..models.config import DitConfig, VaeConfig, VisionLanguageConfig
from ..models.kv_cache import BUCKET, cache_nbytes
from ..models.vae import LIVE, STRIP
from .checkpoint import COMPONENTS, DECODER, GLYPH, NO_FILES, PLANNER, VAE, Checkpoint
from .weights import Weights

PROMPT_TOKENS = 1024  # room for a long prompt; references add their own tokens
GLYPH_TOKENS = 512
STEPS = 50  # of an image, each one pass of the decoder where its layers stream
ROWS = 16  # tokens of an image in a pass of the planner, at most
SMALLEST_STACK = 3  # fewer numbered parts are a feed-forward's two halves, not layers
PIXELS = 16  # numbers of a pixel: channels of the image in two dtypes, and of its latents
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
            {name: min(weights[name].forms.values()) for name in COMPONENTS if weights[name].forms},
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
    height: int = 1024,
    width: int = 1024,
    count: int = 1,
    stored: Mapping[str, torch.dtype] = NOTHING,
    forms: Mapping[str, str] = NOTHING,
    batched: bool = True,
) -> MemoryNeeds:
    """What `count` images of this size take; `stored` and `forms` as in `Placement`, `batched` guidance or not."""
    check_size(height, width)
    work = {
        PLANNER: planner_work(model.planner, dtypes[PLANNER], height, width, count),
        GLYPH: 0,  # short texts; counted with the decoder's
        DECODER: decoder_work(model.decoder, dtypes[DECODER], height, width, count, batched),
        VAE: vae_work(model.vae, dtypes[VAE], height, width),
    }
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
    on_host = {name: sum(found.values()) for name, found in staying.items()}
    text = model.planner.text_config
    image_rows = text.vision_vocab_size * text.hidden_size * stored.get(PLANNER, dtypes[PLANNER]).itemsize
    return MemoryNeeds(
        weights={name: sum(sizes[name].values()) for name in COMPONENTS},
        layers={name: sum(layers[name]) for name in COMPONENTS},
        layer={name: max(layers[name], default=0) for name in COMPONENTS},
        work=work,
        on_host=on_host | {PLANNER: on_host[PLANNER] - image_rows},
        passes={PLANNER: sum(h * w for h, w in _grids(height, width)), DECODER: STEPS},
    )


def _grids(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Of the full plan and of its preview."""
    grid = token_grid(height, width)
    return grid, preview_grid(*grid)


def _sizes(numbers: Mapping[str, int], dtype: torch.dtype, form: str | None) -> dict[str, int]:
    """Bytes of every tensor, those of layers that are rounded to 8 or 4 bits by their own form."""
    sizes = {key: n * dtype.itemsize for key, n in numbers.items()}
    for key, n in numbers.items() if form else ():
        layer, _, name = key.rpartition(".")
        if own := name == "weight" and weight_forms.layer_form(form, layer, GROUP):
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


def planner_work(
    config: VisionLanguageConfig, dtype: torch.dtype, height: int, width: int, count: int, prompt: int = PROMPT_TOKENS
) -> int:
    """The caches of prompt and plans, one pass over the prompt, and the noise and scores of the choice of tokens."""
    text, codebook = config.text_config, config.vq_config.num_embeddings
    planned = sum(h * w for h, w in _grids(height, width))
    cache = cache_nbytes(text, 1 + count, prompt + planned + BUCKET, dtype)
    activations = prompt * (3 * text.intermediate_size + 8 * text.hidden_size) * dtype.itemsize
    choice = (planned + 10 * ROWS) * count * codebook * 4  # noise of all, sorted scores of a pass
    return cache + activations + choice


def decoder_work(
    config: DitConfig, dtype: torch.dtype, height: int, width: int, count: int, batched: bool = True
) -> int:
    """One guided pass: both halves as a batch, or one after the other if not `batched`; the widest layer's activations,
    float32 rotary copies.
    """
    tokens = (1 + batched) * count * (patch_count(height, width) + GLYPH_TOKENS)
    activations = tokens * config.inner_dim * (14 * dtype.itemsize + 8)
    modulations = 50 * (12 * config.num_layers + 2) * config.inner_dim * dtype.itemsize
    return activations + modulations


def vae_work(config: VaeConfig, dtype: torch.dtype, height: int, width: int) -> int:
    """Decoding in slices, which the VAE falls back to: the last level whole, a slice of the widest level before it, and
    the pixels.
    """
    first, second = config.block_out_channels[:2]
    whole = (LIVE * first + PIXELS) * height * width
    return (whole + LIVE * max(first, second) * STRIP * width) * dtype.itemsize
