"""Where each component lives, decided from free memory and sizes before the first weight is read.

`choose` weighs the ways to run a checkpoint on the devices at hand and takes the first that fits, in this order: all
components stay on one device; the planner on one, decoder and VAE on another of the same kind; planner and decoder
take turns on one; layers that do not fit stream from host memory. What the user asks for is honoured and only
reported when it looks too tight. Sizes are bytes throughout.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch

from ..devices.capabilities import resolve_dtype
from ..devices.device import available_devices, resolve_device
from ..devices.memory import memory_of
from ..errors import DeviceError, InputError
from ..geometry import check_size, patch_count, preview_grid, token_grid
from ..models import int8
from ..models import released as release
from ..models.config import DitConfig, VaeConfig, VisionLanguageConfig
from ..models.kv_cache import BUCKET, cache_nbytes
from ..models.vae import LIVE, STRIP
from .checkpoint import COMPONENTS, Weights

logger = logging.getLogger(__name__)

PLANNER, GLYPH, DECODER, VAE = COMPONENTS
STAGES = {"planning": (PLANNER,), "drawing": (GLYPH, DECODER, VAE)}  # what must be on its device at the same time
STREAMABLE = (PLANNER, DECODER)
OFFLOADS = ("auto", "none", "phases", "stream")
HEADROOM = 0.08  # part of a device's memory left alone: fragments, workspaces of its libraries, other programs
PROMPT_TOKENS = 1024  # room for a long prompt; references add their own tokens
GLYPH_TOKENS = 512
SMALLEST_STACK = 3  # fewer numbered parts are a feed-forward's two halves, not layers
STREAM_LAYERS = 2  # layers on the device at once while streaming: the one that runs and the one that arrives
GIB = 1 << 30
NOTHING: Mapping = MappingProxyType({})
HOST = torch.device("cpu")
TOO_TIGHT = "the model will hardly fit; use"

Room = Callable[[torch.device], int]  # bytes that a placement may count on; `available` where none is given


@dataclass(frozen=True)
class Placement:
    """Component folder -> device and dtype. `phased`: where planner and decoder's side share a device, components of
    a stage leave it when the other stage begins; `parked`: they wait in host memory then, and are not dropped.

    `streamed`: component -> bytes of its layers that stay on the device; the others wait in host memory and come one
    after the other. `stored`: component -> dtype of its weights in memory, if not the one that is computed in.
    """

    devices: Mapping[str, torch.device]
    dtypes: Mapping[str, torch.dtype]
    phased: bool = False
    streamed: Mapping[str, int] = field(default_factory=dict)
    parked: bool = False
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def on(cls, device: torch.device, dtype: str | torch.dtype | None = None) -> "Placement":
        """Everything on one device, in the user's dtype or the device's for each component."""
        return cls.split(dict.fromkeys(COMPONENTS, device), dtype)

    @classmethod
    def split(
        cls,
        where: Mapping[str, torch.device],
        dtype: str | torch.dtype | None = None,
        files: Mapping[str, torch.dtype] = NOTHING,
    ) -> "Placement":
        """Each component on its device, in the user's dtype or the best one for what its `files` hold."""
        return cls(where, {name: resolve_dtype(dtype, where[name], name, files.get(name)) for name in COMPONENTS})

    @property
    def name(self) -> str:
        """The strategy in words."""
        sharing = self.leaving("planning")
        others = ", ".join(map(title, [DECODER] if DECODER in sharing else sharing))
        words = f"planner and {others} take turns" if sharing else "everything stays loaded"
        if self.streamed:
            words += f", layers of the {' and the '.join(map(title, self.streamed))} stream from host memory"
        return words

    def leaving(self, stage: str) -> tuple[str, ...]:
        """Components to release before `stage` ("planning" or "drawing") begins."""
        if not self.phased:
            return ()
        here = {self.devices[name] for name in STAGES[stage]} - ({HOST} if self.parked else set())
        others = (name for other, names in STAGES.items() if other != stage for name in names)
        return tuple(name for name in others if self.devices[name] in here)


@dataclass(frozen=True)
class Needs:
    """Bytes of each component: all `weights`, those of its repeated `layers`, the largest `layer`, and the `work` of
    running it besides its weights; and bytes of host memory that `opening` the checkpoint takes.
    """

    weights: Mapping[str, int]
    layers: Mapping[str, int]
    layer: Mapping[str, int]
    work: Mapping[str, int]
    opening: int = 0


# ---- what a checkpoint needs ----


@dataclass(frozen=True)
class Model:
    """What sizes follow from: numbers in every tensor of each component, the configurations, and `files`, the dtypes
    of the components on disk.
    """

    numbers: Mapping[str, Mapping[str, int]]
    planner: VisionLanguageConfig
    decoder: DitConfig
    vae: VaeConfig
    files: Mapping[str, torch.dtype]

    @classmethod
    def of(cls, folder: Path) -> "Model":
        """A checkpoint's, from its JSON and weight headers alone."""
        weights = {name: Weights(folder / name) for name in COMPONENTS}
        return cls(
            {name: _numbers(weights[name]) for name in COMPONENTS},
            VisionLanguageConfig.from_json(folder / PLANNER / "config.json"),
            DitConfig.from_json(folder / DECODER / "config.json"),
            VaeConfig.from_json(folder / VAE / "config.json"),
            {name: weights[name].dtype for name in COMPONENTS},
        )

    @classmethod
    def released(cls) -> "Model":
        """The release's, without its files."""
        numbers = {
            name: {key: tensor.numel() for key, tensor in module.state_dict().items()}
            for name, module in release.meta_modules().items()
        }
        files = dict.fromkeys(COMPONENTS, torch.bfloat16)
        return cls(numbers, release.VISION_LANGUAGE, release.DIT, release.VAE, files)


def _numbers(weights: Weights) -> dict[str, int]:
    return {key: torch.Size(shape).numel() for key, (_, shape, *_) in weights.headers.items()}


def measure(
    model: Model,
    dtypes: Mapping[str, torch.dtype],
    height: int = 1024,
    width: int = 1024,
    count: int = 1,
    stored: Mapping[str, torch.dtype] = NOTHING,
) -> Needs:
    """Needs for `count` images of this size; `stored` as in `Placement`."""
    check_size(height, width)
    work = {
        PLANNER: planner_work(model.planner, dtypes[PLANNER], height, width, count),
        GLYPH: 0,  # short texts; counted with the decoder's
        DECODER: decoder_work(model.decoder, dtypes[DECODER], height, width, count),
        VAE: vae_work(model.vae, dtypes[VAE], height, width),
    }
    sizes = {name: _sizes(model.numbers[name], dtypes[name], stored.get(name)) for name in COMPONENTS}
    layers = {name: _layers(sizes[name]) for name in COMPONENTS}
    return Needs(
        weights={name: sum(sizes[name].values()) for name in COMPONENTS},
        layers={name: sum(layers[name]) for name in COMPONENTS},
        layer={name: max(layers[name], default=0) for name in COMPONENTS},
        work=work,
    )


def _sizes(numbers: Mapping[str, int], dtype: torch.dtype, stored: torch.dtype | None) -> dict[str, int]:
    """Bytes of every tensor; int8 is for the planner's matrices alone, any other `stored` for all that there is."""
    if stored == torch.int8:
        return {key: n * int8.itemsize(key, dtype) for key, n in numbers.items()}
    return {key: n * (stored or dtype).itemsize for key, n in numbers.items()}


def _layers(sizes: Mapping[str, int]) -> list[int]:
    """Sizes of the repeated layers, which streaming brings one by one: `model.language_model.layers.17.*` is one."""
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
    grid = token_grid(height, width)
    planned = sum(h * w for h, w in (grid, preview_grid(*grid)))
    cache = cache_nbytes(text, 1 + count, prompt + planned + BUCKET, dtype)
    activations = prompt * (3 * text.intermediate_size + 8 * text.hidden_size) * dtype.itemsize
    choice = (32 + 8) * count * codebook * 4  # a block of noise, and the sorted scores of one token, in float32
    return cache + activations + choice


def decoder_work(config: DitConfig, dtype: torch.dtype, height: int, width: int, count: int) -> int:
    """One guided pass: both halves of the batch, the widest layer's activations, float32 rotary copies."""
    tokens = 2 * count * (patch_count(height, width) + GLYPH_TOKENS)
    activations = tokens * config.inner_dim * (14 * dtype.itemsize + 8)
    modulations = 50 * (12 * config.num_layers + 2) * config.inner_dim * dtype.itemsize
    return activations + modulations


def vae_work(config: VaeConfig, dtype: torch.dtype, height: int, width: int) -> int:
    """Decoding in strips, which the VAE falls back to: the last level whole, the one before it at half the size, and a
    strip of the widest in between.
    """
    first, second = config.block_out_channels[:2]
    whole = LIVE * (first + second // 4) * height * width
    return (whole + LIVE * max(first, second) * STRIP * width) * dtype.itemsize


# ---- the choice ----


def choose(
    model: Path | Model,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    offload: str = "auto",
    report: Callable[[str], None] = logger.info,
    **wishes,
) -> Placement:
    """The user's wishes, as `weigh` takes them, and the memory there is -> a placement of a checkpoint folder;
    `report` gets its estimate if a card is used.

    Raises DeviceError when nothing can fit; what the user asks for by `offload`, and the CPU, are only warned about.
    """
    placement, needs = weigh(model, device, dtype, offload=offload, **wishes)
    text = estimate(placement, needs)
    on_cards = any(device.type != "cpu" for device in placement.devices.values())
    if not fits(placement, needs):
        if offload == "auto" and on_cards:
            raise DeviceError(f"{TOO_TIGHT}: a smaller image, fewer at once, another device or --device cpu\n{text}")
        logger.warning("%s, or swap to disk\n%s", TOO_TIGHT, text)
    if on_cards:
        report(text)
    return placement


def weigh(
    model: Path | Model,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    planner_device: str | torch.device | None = None,
    decoder_device: str | torch.device | None = None,
    offload: str = "auto",
    height: int = 1024,
    width: int = 1024,
    count: int = 1,
    planner_int8: bool = False,
) -> tuple[Placement, Needs]:
    """The first placement that fits, or the most frugal one, and the needs of the model in it.

    `device` is for everything that has no device of its own; `offload` "none" keeps all loaded, "phases" lets planner
    and decoder take turns, "stream" leaves layers in host memory, "auto" does the first that fits. `planner_int8`
    stores the planner's matrices in 8 bits.
    """
    if offload not in OFFLOADS:
        raise InputError(f"offload {offload!r} is not known; use {', '.join(OFFLOADS)}")
    main = resolve_device(device)
    where = dict.fromkeys(COMPONENTS, main)
    if planner_device is not None:
        where[PLANNER] = resolve_device(planner_device)
    if decoder_device is not None:
        where |= dict.fromkeys(STAGES["drawing"], resolve_device(decoder_device))
    model = model if isinstance(model, Model) else Model.of(model)
    stored = {PLANNER: torch.int8} if planner_int8 else {}
    wanted = replace(Placement.split(where, dtype, model.files), stored=stored)
    needs = measure(model, wanted.dtypes, height, width, count, stored)
    free_choice = device is None and planner_device is None and decoder_device is None
    others = further_devices(main) if free_choice else []
    return first_that_fits(wanted, needs, offload, others), needs


def further_devices(main: torch.device) -> list[torch.device]:
    """Those of the same kind; there is one CPU."""
    if main.type == "cpu":
        return []
    return [d for d in available_devices() if d.type == main.type and d != main]


def first_that_fits(
    wanted: Placement,
    needs: Needs,
    offload: str = "auto",
    others: Sequence[torch.device] = (),
    room: Room | None = None,
) -> Placement:
    """`wanted`, or the first more frugal form of it that fits, or the most frugal one; `offload` as in `weigh`.

    Decoder and VAE may move to the first of `others`.
    """
    candidates = list(_candidates(wanted, needs, offload, others, room))
    return next((c for c in candidates if fits(c, needs, room)), candidates[-1])


def _candidates(wanted: Placement, needs: Needs, offload: str, others: Sequence[torch.device], room: Room | None):
    """Placements from fast to frugal; only those that `offload` allows."""
    if offload in ("auto", "none"):
        yield wanted
    if offload == "auto" and others:
        second = resolve_device(others[0])
        yield replace(wanted, devices={**wanted.devices, **dict.fromkeys(STAGES["drawing"], second)})
    turns = replace(wanted, phased=wanted.devices[PLANNER] in {wanted.devices[name] for name in STAGES["drawing"]})
    if offload in ("auto", "phases"):
        yield turns
    if offload in ("auto", "stream"):
        yield _streaming(turns, needs, offload == "stream", room)


def _streaming(placement: Placement, needs: Needs, forced: bool, room: Room | None) -> Placement:
    """Stream what does not fit (everything that can, if `forced`), keeping as many weights as memory allows."""
    streamed = {}
    for name in STREAMABLE:
        device = placement.devices[name]
        if device.type == "cpu":
            continue
        stage = _stage_peaks(placement, needs)[device]
        spare = (room or available)(device) - stage[_stage_of(name)]
        if forced or spare < 0:
            keep = needs.layers[name] + spare - STREAM_LAYERS * needs.layer[name]
            streamed[name] = max(0, min(keep, needs.layers[name]))
    return replace(placement, streamed=streamed)


def _stage_of(name: str) -> str:
    return next(stage for stage, names in STAGES.items() if name in names)


def available(device: torch.device) -> int:
    """Bytes that a placement may count on."""
    memory = memory_of(device)
    return int(memory.free - HEADROOM * memory.total)


def fits(placement: Placement, needs: Needs, room: Room | None = None) -> bool:
    return not shortage(placement, needs, room)


def shortage(placement: Placement, needs: Needs, room: Room | None = None) -> dict[torch.device, int]:
    """Bytes that each device lacks; devices that suffice are left out."""
    missing = {device: peak - (room or available)(device) for device, peak in peaks(placement, needs).items()}
    return {device: size for device, size in missing.items() if size > 0}


def better_device(placement: Placement, needs: Needs, room: Room | None = None) -> tuple[str, torch.device] | None:
    """A component and the card of the same kind to which it should go, so that all fits and nothing streams."""
    for name in (DECODER, PLANNER, VAE, GLYPH):
        for other in further_devices(placement.devices[name]):
            moved = replace(placement, devices={**placement.devices, name: other}, phased=False, streamed={})
            found = first_that_fits(moved, needs, room=room)
            if not found.streamed and fits(found, needs, room):
                return name, other
    return None


def peaks(placement: Placement, needs: Needs) -> dict[torch.device, int]:
    """The most that each device holds at any time, host memory for what waits there included."""
    result = {device: max(stages.values()) for device, stages in _stage_peaks(placement, needs).items()}
    if needs.opening:
        result[HOST] = max(result.get(HOST, 0), needs.opening)
    return result


def _stage_peaks(placement: Placement, needs: Needs) -> dict[torch.device, dict[str, int]]:
    """device -> stage -> bytes: weights that lie there during the stage, and the stage's largest work."""
    result: dict[torch.device, dict[str, int]] = {}
    for stage, names in STAGES.items():
        leaving = placement.leaving(stage)
        for device in set(placement.devices.values()):
            here = [name for name in COMPONENTS if placement.devices[name] == device]
            loaded = sum(_held(placement, needs, name) for name in here if name not in leaving)
            work = max((needs.work[name] for name in here if name in names), default=0)
            result.setdefault(device, {})[stage] = loaded + work
        if waiting := _waiting(placement, needs, stage):
            host = result.setdefault(HOST, {})
            host[stage] = host.get(stage, 0) + waiting
    return result


def _waiting(placement: Placement, needs: Needs, stage: str) -> int:
    """Bytes in host memory during a stage: layers that stream, and what is parked there."""
    leaving = placement.leaving(stage)
    layers = sum(needs.layers[name] - kept for name, kept in placement.streamed.items() if name not in leaving)
    return layers + (sum(needs.weights[name] for name in leaving) if placement.parked else 0)


def _held(placement: Placement, needs: Needs, name: str) -> int:
    """Bytes of weights on the component's device."""
    if name not in placement.streamed:
        return needs.weights[name]
    moving = min(needs.layers[name], placement.streamed[name] + STREAM_LAYERS * needs.layer[name])
    return needs.weights[name] - needs.layers[name] + moving


# ---- the report ----


def title(component: str) -> str:
    """The component's name for people."""
    return {PLANNER: "planner", GLYPH: "glyph encoder", DECODER: "decoder", VAE: "VAE"}[component]


def estimate(placement: Placement, needs: Needs, room: Room | None = None) -> str:
    """The placement as a small table: component, device, dtype, bytes of weights and work; then each device's peak."""
    lines = [f"placement: {placement.name}"]
    for name in COMPONENTS:
        dtype = str(placement.dtypes[name]).removeprefix("torch.")
        weights, work = gib(needs.weights[name]), gib(needs.work[name])
        if name in placement.stored:
            weights += f" {str(placement.stored[name]).removeprefix('torch.')}"
        lines.append(f"  {title(name):13} {placement.devices[name]!s:7} {dtype:9} {weights} weights, {work} work")
    for device, peak in peaks(placement, needs).items():
        lines.append(f"  peak on {device}: {gib(peak)} of {gib((room or available)(device))} that may be used")
    return "\n".join(lines)


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"
