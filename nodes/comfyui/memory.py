"""Whether a checkpoint fits its devices, as ComfyUI will load it.

ComfyUI moves components by itself: it unloads one for another on the same device, and loads in part what does not fit
beside its work. The estimate assumes just that.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_management
import torch
from comfy.model_management import VRAMState

from ...pipeline.devices.capabilities import resolve_dtype
from ...pipeline.devices.device import available_devices
from ...pipeline.errors import presentable
from ...pipeline.loading import placement
from ...pipeline.loading.checkpoint import COMPONENTS, DECODER, GLYPH, PLANNER, VAE, title
from ...pipeline.loading.memory_needs import CheckpointSizes, MemoryNeeds, memory_needs
from ...pipeline.loading.placement import Offload, Placement, gib
from ...pipeline.loading.stored import check_rounding
from ...pipeline.loading.work_needs import ImageBatch
from ...pipeline.models.weight_forms import FORMS
from . import model_folders
from .loading import Devices, Dtypes, choose_device, dtypes_for, stays_in_file
from .page import LONGEST

IN_PIECES = (VRAMState.NORMAL_VRAM, VRAMState.LOW_VRAM)


def choose_all(
    sizes: CheckpointSizes, where: Devices, planner_dtype: str, decoder_dtype: str, images: ImageBatch
) -> tuple[Placement, MemoryNeeds]:
    """What the loaders will do with these choices, and what that takes."""
    devices = {
        PLANNER: choose_device(where.planner),
        GLYPH: choose_device(where.glyph_encoder),
        DECODER: choose_device(where.decoder),
        VAE: choose_device(where.vae, comfy.model_management.vae_device),
    }
    wishes = {PLANNER: planner_dtype, DECODER: decoder_dtype, GLYPH: "auto"}
    for name, wish in wishes.items():
        check_rounding(title(name), sizes.forms.get(name), wish)
    forms = {name: wish for name, wish in wishes.items() if wish in FORMS and not sizes.codes.get(name)}
    dtypes = choose_all_dtypes(sizes, devices, wishes)
    wanted = Placement(
        devices,
        {name: dtype.compute for name, dtype in dtypes.items()},
        parked=True,
        stored={name: dtype.storage for name, dtype in dtypes.items() if dtype.storage != dtype.compute},
        forms=forms,
    )
    needs = memory_needs(
        sizes, wanted.dtypes, images, stored=wanted.stored, forms=forms, devices=devices, apart=False
    )  # ComfyUI moves components whole
    whole = [name for name in COMPONENTS if name not in forms and name not in sizes.widened]
    mapped = {name for name in whole if stays_in_file(sizes.files[name], dtypes[name], devices[name])}
    opening = sum(needs.weights[name] for name in COMPONENTS if name not in mapped)
    needs = replace(needs, opening=opening, in_files=frozenset(mapped))
    return as_comfyui_loads(wanted, needs), needs


def choose_all_dtypes(
    sizes: CheckpointSizes, devices: dict[str, torch.device], wishes: dict[str, str]
) -> dict[str, Dtypes]:
    """What each loader stores and computes in, of which the VAE's has no choice in Load GLM-Image."""
    numbers = {name: sum(sizes.numbers[name].values()) for name in wishes}
    found = {name: dtypes_for(wish, sizes.files[name], numbers[name], devices[name]) for name, wish in wishes.items()}
    vae = resolve_dtype("auto", devices[VAE], VAE, sizes.files[VAE])
    return found | {VAE: Dtypes(vae, vae)}


def read_sizes(model: str, files: Mapping[str, Path]) -> tuple[CheckpointSizes, Path | None]:
    """A checkpoint's sizes with these single files, and its folder; the release's are known before it is there."""
    folder = model_folders.find_folder(model)
    if folder.name == model_folders.RELEASE and not model_folders.is_checkpoint(folder) and not files:
        return released(), None
    folder = model_folders.model_folder(model)
    return CheckpointSizes.of(folder, files), folder


@cache
def released() -> CheckpointSizes:
    return CheckpointSizes.of_release()


def as_comfyui_loads(wanted: Placement, needs: MemoryNeeds) -> Placement:
    """The placement that ComfyUI comes to, as far as its options let it unload components and load them in part."""
    state = comfy.model_management.vram_state
    if state == VRAMState.NO_VRAM:
        return placement.first_that_fits(wanted, needs, Offload.LAYERWISE, budget=budget)
    if state == VRAMState.HIGH_VRAM:
        return placement.first_that_fits(wanted, needs, Offload.NONE, budget=budget)
    found = placement.first_that_fits(wanted, needs, budget=budget)
    if found.streamed and state not in IN_PIECES:
        return placement.first_that_fits(wanted, needs, Offload.MODEL, budget=budget)
    return found


def budget(device: torch.device) -> int:
    """Bytes that may be counted on, with those that ComfyUI would free by unloading what it has loaded."""
    loaded = comfy.model_management.current_loaded_models if device.type != "cpu" else []
    held = sum(entry.model_loaded_memory() for entry in loaded if entry.device == device and entry.model is not None)
    return placement.available(device) + held


def describe(what: str, chosen: Placement, needs: MemoryNeeds) -> str:
    """The estimate as text; its first lines say whether `what` fits and what to do if not, which is logged too."""
    missing = placement.shortage(chosen, needs, budget)
    verdict = "DOES NOT FIT" if missing else "fits, but is slow" if chosen.streamed else "fits"
    lines = [f"{what}: {verdict}"]
    if missing:
        lines.append("; ".join(f"{device} lacks {gib(size)}" for device, size in missing.items()))
    if missing or chosen.streamed:
        lines.append(remedy(chosen, needs, missing))
    if missing:
        logging.warning(presentable(". ".join(lines), LONGEST))
    return "\n".join([*lines, placement.describe(chosen, needs, budget)])


def remedy(chosen: Placement, needs: MemoryNeeds, missing: dict[torch.device, int]) -> str:
    """What the user can do about a placement that is too tight; each way spares at least half of what is missing."""
    if found := placement.better_device(chosen, needs, budget):
        name, device = found
        return f"Better: {title(name)} on {device}"
    lack, ways = max(missing.values(), default=0), []
    if missing and 2 * max(needs.work.values()) >= lack:
        ways.append("a smaller image or fewer at once")
    halved = [needs.weights[name] // 2 for name in (PLANNER, DECODER) if may_shrink(chosen, name)]
    if halved and 2 * sum(halved) >= lack:
        ways.append("w8 weights")
    if len(available_devices()) > 1:
        ways.append("another device for a component")
    return f"Try {', '.join(ways)}" if ways else "This machine has too little memory for it"


def may_shrink(chosen: Placement, name: str) -> bool:
    """Whether a component could have 8-bit weights and has none."""
    return chosen.stored.get(name, chosen.dtypes[name]).itemsize > 1 and name not in chosen.forms
