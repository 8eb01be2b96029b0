"""Where each component lives, decided from free memory and sizes before the first weight is read.

`choose` takes the first way to run a checkpoint on the devices at hand that fits, in this order: all components stay on
one device; the planner on one, decoder and VAE on another of the same kind; model offload, where planner and decoder
take turns on one; layerwise offload, where layers that do not fit wait in host memory. What the user asks for is
honoured and only reported when it looks too tight. Sizes are bytes throughout.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import product
from pathlib import Path

import torch

from ..devices.capabilities import resolve_dtype
from ..devices.device import available_devices, resolve_device
from ..devices.memory import memory_of
from ..devices.quantised_products import check_form
from ..errors import DeviceError, InputError
from ..models.weight_forms import FORMS
from .checkpoint import COMPONENTS, DECODER, GLYPH, PLANNER, VAE, title
from .memory_needs import NOTHING, CheckpointSizes, MemoryNeeds, memory_needs
from .stored import check_rounding
from .work_needs import ONE_IMAGE, ImageBatch

logger = logging.getLogger(__name__)
STAGES = {"planning": (PLANNER,), "drawing": (GLYPH, DECODER, VAE)}  # what must be on its device at the same time
WEIGHTS = ("auto", "full", *FORMS)
STREAMABLE = (PLANNER, DECODER)
HEADROOM = 0.08  # part of a device's memory left alone: fragments, workspaces of its libraries, other programs
LOADED_LAYERS = 2  # on the device at once in layerwise offload: the layer that runs and the one that arrives
FAST_BUS, SLOW_BUS = 25e9, 12e9  # bytes a second from host memory: PCIe 4 and PCIe 3, both with 16 lanes
GIB = 1 << 30
HOST = torch.device("cpu")
TOO_TIGHT = "the model will hardly fit; use"
Budget = Callable[[torch.device], int]  # bytes that a placement may count on; `available` where none is given


@dataclass(frozen=True)
class Placement:
    """Component folder -> device and dtype. `phased`: where planner and decoder's side share a device, components of
    a stage leave it when the other stage begins; `parked`: they wait in host memory then, and are not dropped.

    `streamed`: component -> bytes of its layers that stay on the device; the others wait in host memory and come one
    after the other. `stored`: component -> dtype of its weights in memory, if not the one that is computed in.
    `forms`: component -> "w8" or "w4", the form to which its whole weights are rounded while they are loaded.
    """

    devices: Mapping[str, torch.device]
    dtypes: Mapping[str, torch.dtype]
    phased: bool = False
    streamed: Mapping[str, int] = field(default_factory=dict)
    parked: bool = False
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)

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
    def accelerated(self) -> bool:
        """Whether a component has a device other than the CPU."""
        return any(device.type != "cpu" for device in self.devices.values())

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


class Offload(Enum):
    """What may wait elsewhere while it is not used; the values are the words of the command line.

    MODEL: planner and decoder take turns on a device. LAYERWISE: layers wait in host memory. AUTO: the first that fits.
    """

    AUTO = "auto"
    NONE = "none"
    MODEL = "phases"
    LAYERWISE = "stream"

    @classmethod
    def of(cls, word: str) -> "Offload":
        try:
            return cls(word)
        except ValueError:
            raise InputError(f"offload {word!r} is not known; use {', '.join(o.value for o in cls)}") from None


@dataclass(frozen=True)
class PlacementRequest:
    """What the user asks for, and the `images` that will be drawn.

    `device` is for everything that has no device of its own. `planner_weights` and `decoder_weights` are "full" (as the
    files have them), "w8" or "w4" (rounded), or "auto": whole, and of 8 bits where layers would have to stream else.
    `lora_numbers` are those of each component's LoRAs, which lie beside weights of 8 and 4 bits.
    """

    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    planner_device: str | torch.device | None = None
    decoder_device: str | torch.device | None = None
    offload: Offload = Offload.AUTO
    images: ImageBatch = ONE_IMAGE
    planner_weights: str = "auto"
    decoder_weights: str = "auto"
    lora_numbers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for name, word in self.weights.items():
            if word not in WEIGHTS:
                raise InputError(f"{title(name)} weights {word!r} are not known; use {', '.join(WEIGHTS)}")

    @property
    def may_use_others(self) -> bool:
        """Whether no device was named, so that a second one may be used."""
        return self.device is None and self.planner_device is None and self.decoder_device is None

    def refuses(self, placement: Placement) -> bool:
        """Whether a placement that does not fit is refused, and not only warned about."""
        return self.offload == Offload.AUTO and placement.accelerated

    @property
    def weights(self) -> dict[str, str]:
        """Component -> the word for its weights."""
        return {PLANNER: self.planner_weights, DECODER: self.decoder_weights}

    def forms(self) -> list[dict[str, str]]:
        """Component -> form, from the exact to the frugal: those that may be tried one after the other."""
        words = self.weights
        asked = {name: word for name, word in words.items() if word in FORMS}
        free = [name for name, word in words.items() if word == "auto" and self.offload != Offload.LAYERWISE]
        return [asked | dict.fromkeys(free[:count], "w8") for count in range(len(free) + 1)]

    def devices(self) -> dict[str, torch.device]:
        """Component -> device; raises DeviceError for one that is not there."""
        main = resolve_device(self.device)
        where = dict.fromkeys(COMPONENTS, main)
        if self.planner_device is not None:
            where[PLANNER] = resolve_device(self.planner_device)
        if self.decoder_device is not None:
            where |= dict.fromkeys(STAGES["drawing"], resolve_device(self.decoder_device))
        return where


def choose(
    model: Path | CheckpointSizes, request: PlacementRequest, report: Callable[[str], None] = logger.info
) -> Placement:
    """The request and the memory there is -> a placement of a checkpoint; `report` gets it if an accelerator
    is used.

    Raises DeviceError when nothing can fit; what the user asks for by `offload`, and the CPU, are only warned about.
    """
    placement, needs = plan_placement(model, request)
    text = describe(placement, needs)
    accelerated = placement.accelerated
    if not fits(placement, needs):
        if request.refuses(placement):
            raise DeviceError(f"{TOO_TIGHT}: a smaller image, fewer at once, another device or --device cpu\n{text}")
        logger.warning("%s, or swap to disk\n%s", TOO_TIGHT, text)
    if accelerated:
        report(text)
    return placement


def plan_placement(model: Path | CheckpointSizes, request: PlacementRequest) -> tuple[Placement, MemoryNeeds]:
    """The first placement that fits, or the most frugal one, and the needs of the model in it.

    Raises InputError for weights that lie in another form of 8 or 4 bits than the request's.
    """
    where = request.devices()
    sizes = model if isinstance(model, CheckpointSizes) else CheckpointSizes.of(model)
    for name, word in request.weights.items():
        check_rounding(title(name), sizes.forms.get(name), word)
    whole = Placement.split(where, request.dtype, sizes.files)
    others = further_devices(where[VAE]) if request.may_use_others else []
    for forms, batched in product(request.forms(), request.images.batched(where[DECODER])):
        forms = {name: form for name, form in forms.items() if not sizes.codes.get(name)}
        needs = memory_needs(sizes, whole.dtypes, request.images, forms=forms, batched=batched, devices=where)
        for name in (n for n in request.lora_numbers if forms.get(n) or sizes.codes.get(n)):
            needs = needs.with_loras(name, request.lora_numbers[name] * whole.dtypes[name].itemsize)
        found = first_that_fits(replace(whole, forms=forms), needs, request.offload, others)
        if fits(found, needs) and not found.streamed:
            break
    _check_forms(found, sizes)
    return found, needs


def _check_forms(placement: Placement, sizes: CheckpointSizes) -> None:
    """Refuse weights that a device cannot multiply by, those of the files included."""
    for name, form in (sizes.forms | dict(placement.forms)).items():
        check_form(form, placement.devices[name], placement.dtypes[name])


def further_devices(main: torch.device) -> list[torch.device]:
    """Those of the same kind; there is one CPU."""
    if main.type == "cpu":
        return []
    return [d for d in available_devices() if d.type == main.type and d != main]


def first_that_fits(
    wanted: Placement,
    needs: MemoryNeeds,
    offload: Offload = Offload.AUTO,
    others: Sequence[torch.device] = (),
    budget: Budget | None = None,
) -> Placement:
    """`wanted`, or the first more frugal form of it that fits, or the most frugal one.

    Decoder and VAE may move to the first of `others`.
    """
    candidates = list(_candidates(wanted, needs, offload, others, budget))
    return next((c for c in candidates if fits(c, needs, budget)), candidates[-1])


def _candidates(
    wanted: Placement, needs: MemoryNeeds, offload: Offload, others: Sequence[torch.device], budget: Budget | None
):
    """Placements from fast to frugal; only those that `offload` allows."""
    if offload in (Offload.AUTO, Offload.NONE):
        yield wanted
    if offload == Offload.AUTO and others:
        second = resolve_device(others[0])
        yield replace(wanted, devices={**wanted.devices, **dict.fromkeys(STAGES["drawing"], second)})
    turns = replace(wanted, phased=wanted.devices[PLANNER] in {wanted.devices[name] for name in STAGES["drawing"]})
    if offload in (Offload.AUTO, Offload.MODEL):
        yield turns
    if offload in (Offload.AUTO, Offload.LAYERWISE):
        yield _layerwise(turns, needs, offload == Offload.LAYERWISE, budget)


def _layerwise(placement: Placement, needs: MemoryNeeds, forced: bool, budget: Budget | None) -> Placement:
    """Layerwise offload of what does not fit (of all that can, if `forced`); as many layers stay as memory allows."""
    streamed = {}
    for name in STREAMABLE:
        device = placement.devices[name]
        if device.type == "cpu":
            continue
        stage = _stage_peaks(placement, needs)[device]
        spare = (budget or available)(device) - stage[_stage_of(name)]
        if forced or spare < 0:
            keep = needs.layers[name] + spare - LOADED_LAYERS * needs.layer[name]
            streamed[name] = max(0, min(keep, needs.layers[name]))
    return replace(placement, streamed=streamed)


def _stage_of(name: str) -> str:
    return next(stage for stage, names in STAGES.items() if name in names)


def available(device: torch.device) -> int:
    """Bytes that a placement may count on."""
    memory = memory_of(device)
    return int(memory.free - HEADROOM * memory.total)


def fits(placement: Placement, needs: MemoryNeeds, budget: Budget | None = None) -> bool:
    return not shortage(placement, needs, budget)


def shortage(placement: Placement, needs: MemoryNeeds, budget: Budget | None = None) -> dict[torch.device, int]:
    """Bytes that each device lacks; devices that suffice are left out."""
    missing = {device: peak - (budget or available)(device) for device, peak in peaks(placement, needs).items()}
    return {device: size for device, size in missing.items() if size > 0}


def better_device(
    placement: Placement, needs: MemoryNeeds, budget: Budget | None = None
) -> tuple[str, torch.device] | None:
    """A component and the card of the same kind to which it should go, so that all fits and nothing is offloaded."""
    for name in (DECODER, PLANNER, VAE, GLYPH):
        for other in further_devices(placement.devices[name]):
            moved = replace(placement, devices={**placement.devices, name: other}, phased=False, streamed={})
            found = first_that_fits(moved, needs, budget=budget)
            if not found.streamed and fits(found, needs, budget):
                return name, other
    return None


def peaks(placement: Placement, needs: MemoryNeeds) -> dict[torch.device, int]:
    """The most that each device holds at any time, host memory for what waits there included."""
    result = {device: max(stages.values()) for device, stages in _stage_peaks(placement, needs).items()}
    if needs.opening:
        result[HOST] = max(result.get(HOST, 0), needs.opening)
    return result


def _stage_peaks(placement: Placement, needs: MemoryNeeds) -> dict[torch.device, dict[str, int]]:
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


def _waiting(placement: Placement, needs: MemoryNeeds, stage: str) -> int:
    """Bytes in host memory during a stage: layers that are offloaded, what is parked there and what never leaves it."""
    leaving = placement.leaving(stage)
    staying = sum(_staying(placement, needs, name) for name in COMPONENTS if name not in leaving)
    layers = sum(needs.layers[name] - kept for name, kept in placement.streamed.items() if name not in leaving)
    waiting = [name for name in leaving if placement.parked and name not in needs.in_files]
    return staying + layers + sum(needs.weights[name] for name in waiting)


def _held(placement: Placement, needs: MemoryNeeds, name: str) -> int:
    """Bytes of weights on the component's device."""
    weights = needs.weights[name] - _staying(placement, needs, name)
    if name not in placement.streamed:
        return weights
    moving = min(needs.layers[name], placement.streamed[name] + LOADED_LAYERS * needs.layer[name])
    return weights - needs.layers[name] + moving


def _staying(placement: Placement, needs: MemoryNeeds, name: str) -> int:
    """Bytes of a component's weights that an accelerator needs for prompts only and leaves in host memory."""
    return needs.on_host.get(name, 0) if placement.devices[name].type != "cpu" else 0


def streaming_minutes(placement: Placement, needs: MemoryNeeds) -> tuple[float, float]:
    """How long an image waits for layers from host memory, by calculation: at fast and at slow buses; 0 if none do."""
    moved = sum(needs.passes[name] * (needs.layers[name] - kept) for name, kept in placement.streamed.items())
    return moved / FAST_BUS / 60, moved / SLOW_BUS / 60


def describe(placement: Placement, needs: MemoryNeeds, budget: Budget | None = None) -> str:
    """The placement as a small table: component, device, dtype, bytes of weights and work; then each device's peak."""
    lines = [f"placement: {placement.name}"]
    for name in COMPONENTS:
        dtype = str(placement.dtypes[name]).removeprefix("torch.")
        weights, work = gib(needs.weights[name]), gib(needs.work[name])
        if name in placement.stored:
            weights += f" {str(placement.stored[name]).removeprefix('torch.')}"
        if name in placement.forms:
            weights += f" {placement.forms[name]}"
        lines.append(f"  {title(name):14} {placement.devices[name]!s:7} {dtype:9} {weights} weights, {work} work")
    if placement.streamed:
        low, high = streaming_minutes(placement, needs)
        minutes = f"about {low:.0f} to {high:.0f} minutes an image"
        lines.append(f"  layers that stream take {minutes}; weights of 8 bits ('glm-image quantize') may spare them")
    for device, peak in peaks(placement, needs).items():
        lines.append(f"  peak on {device}: {gib(peak)} of {gib((budget or available)(device))} that may be used")
    return "\n".join(lines)


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"
