"""Opening the components of a checkpoint for ComfyUI: lazily, in the dtype that fits, under its memory management.

Weights are mapped from disk and read when a layer first runs, unless they are rounded or change their size: then that
happens here and they lie in host memory. Layers are ComfyUI's, so that components may be loaded in part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP

from ...pipeline.devices import quantised_products
from ...pipeline.devices.capabilities import resolve_dtype
from ...pipeline.devices.device import resolve_device
from ...pipeline.errors import CheckpointError, InputError
from ...pipeline.loading.single_files import weights_at
from ...pipeline.loading.stored import check_rounding
from ...pipeline.loading.weights import (
    Weights,
    build_empty,
    check_layers,
    compare,
    component_of,
    finite_flag,
    not_finite,
    parts_of,
)
from ...pipeline.models import weight_forms
from .beside_codes import with_codes
from .mapped import as_given, stay_in_file
from .ops import computing_in, let_codes_wait

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
    """Socket value: the name of a device for each component; `auto` is where ComfyUI computes."""

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


def check_form(choice: str, weights: Weights, device: torch.device) -> str | None:
    """The form that a choice of the `dtype` widget rounds weights to; one that cannot be is an error."""
    # ComfyUI moves codes as they lie; the operator wants a pack.
    if device.type == "npu" and "w4" in (choice, weights.form):
        raise InputError("4-bit weights (w4) run on NPUs from the command line only; take w8")
    if choice not in weight_forms.FORMS:
        return None
    check_rounding(component_of(weights.headers) or "file", weights.form, choice)
    quantised_products.check_form(choice, device)
    return choice


def dtypes_for(choice: str, stored: torch.dtype, numbers: int, device: torch.device) -> Dtypes:
    """`auto` computes in the device's best dtype and stores many numbers as their file does where that is smaller.

    A named dtype is used for both; an 8-bit one only stores. One that the device lacks is an error. A form to round to
    (w8, w4) leaves dtypes to `auto`.
    """
    auto = resolve_dtype("auto", device, stored=stored)
    if choice != "auto" and choice not in weight_forms.FORMS:
        storage = DTYPES[choice]
        if storage.itemsize == 1 and device.type == "npu":
            raise InputError(f"{choice} does not run on {device}, which has no operator for it; choose w8 for 8 bits")
        return Dtypes(storage, resolve_dtype(storage, device) if storage.itemsize > 1 else auto)
    if stored.itemsize == 1 and device.type == "npu":
        return Dtypes(auto, auto)
    if stored.itemsize == 1 or (stored.itemsize < auto.itemsize and numbers * auto.itemsize > SMALL):
        return Dtypes(stored, auto)
    return Dtypes(auto, auto)


def fill(
    module: torch.nn.Module,
    weights: Weights,
    dtypes: Dtypes,
    plain: Callable,
    device: torch.device,
    form: str | None = None,
) -> torch.nn.Module:
    """Give a module of the meta device its weights, all of them and no other; names and shapes are compared first.

    `plain()` builds the same module of torch's layers: ComfyUI's may have no weights before they are loaded. `form`
    rounds whole weights now; others stay mapped, and change to a dtype of the same size on their way to `device`.
    """
    known = weight_forms.adopt(build_empty(plain, weights), weights.forms)
    compare(known, weights)
    rounded = weight_forms.forms_of(known, form)
    weight_forms.adopt(module, weights.forms | rounded)
    state, lying, given = {}, set(), {}
    for key, tensor in weights.tensors():
        for name, part in parts_of(key, tensor, rounded).items():
            dtype, mapped = dtype_of(part, dtypes), part is tensor and weights.maps(key)
            late = mapped and changes_on_its_way(part.dtype, dtype, device)
            state[name] = part if late else part.to(dtype)
            if mapped and state[name] is tensor:
                own = getattr(module, "aliases", {}).get(name, name)
                lying.add(own)
                given |= {own: dtype} if late and dtype != tensor.dtype else {}
    module.load_state_dict(state, strict=True, assign=True)
    let_codes_wait(module)
    module.filled_from = weights.folder
    if hasattr(comfy.model_management, "archive_model_dtypes"):  # newer than 0.3.75, which notes dtypes as built
        comfy.model_management.archive_model_dtypes(module)
    stay_in_file(module, {key: module.get_parameter(key).data for key in lying}, given)
    return module.eval().requires_grad_(False)


def dtype_of(tensor: torch.Tensor, dtypes: Dtypes) -> torch.dtype:
    """The dtype in which a weight is kept; norms and biases are too small to pay for the errors of 8 bits."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return dtypes.compute if dtypes.storage.itemsize == 1 and tensor.ndim < 2 else dtypes.storage


def changes_on_its_way(stored: torch.dtype, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a weight gets its dtype when it goes to the device: ComfyUI counts bytes by what waits in host memory."""
    return device.type != "cpu" and dtype.itemsize == stored.itemsize


def stays_in_file(stored: torch.dtype, dtypes: Dtypes, device: torch.device) -> bool:
    """Whether whole weights of a dtype are used from their file, without a copy in host memory."""
    return stored == dtypes.storage or changes_on_its_way(stored, dtypes.storage, device)


def manage(module: torch.nn.Module, device: torch.device, offload: torch.device | None = None):
    """Put a module under ComfyUI's memory management; `offload` is where it waits, by default where decoders do.

    A component that never leaves its device, as ComfyUI's options may want it, stays on its own and not on ComfyUI's.
    """
    plain = comfy.model_patcher.ModelPatcher
    kind = plain if device.type == "cpu" else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    offload = offload or comfy.model_management.unet_offload_device()
    patcher = with_codes(kind)(module, load_device=device, offload_device=offload if offload.type == "cpu" else device)
    patcher.add_callback(CallbacksMP.ON_LOAD, check_weights)
    return patcher


def check_weights(patcher, *_) -> None:
    """Raise when weights that were just loaded, or patched, hold NaN or infinity: images would be black.

    Weights lie unread in their file until they are loaded, so that this is the first time that all are read; those
    found good are not read again, only what patches have changed since.
    """
    model, patched = patcher.model, set(patcher.patches)
    seen = getattr(model, "finite_with", None)
    if seen == patcher.patches_uuid:
        return
    _refuse_patched_codes(model, patched)
    weights = {k: w for k, w in model.named_parameters() if seen is None or k in patched or ".lora_" in k}
    flags = {
        key: finite_flag(as_given(model, key, weight))
        for key, weight in weights.items()
        if weight.device.type != "meta"
    }
    bad = not_finite(flags)
    if bad:
        source = getattr(getattr(model, "diffusion_model", model), "filled_from", "the model")
        patcher.unpatch_model(patcher.offload_device)
        raise CheckpointError(
            f"{source}{' or its LoRA' if patched else ''}: {bad[0]} holds NaN or infinite numbers ({len(bad)} tensors "
            "do); the file is damaged, or the dtype too small"
        )
    model.finite_with = patcher.patches_uuid


def _refuse_patched_codes(model, patched: set[str]) -> None:
    """A patcher of another pack adds a LoRA to codes of 8 or 4 bits, which are no numbers."""
    codes = [key for key, weight in model.named_parameters() if key in patched and not weight.is_floating_point()]
    if codes:
        raise CheckpointError(
            f"another pack's loading changes {codes[0]}, whose weights have 8 or 4 bits; load whole weights for it"
        )


def open_part(build: Callable, config, path: Path, dtype: str, device: str):
    """A component's folder or file -> (patcher around its module, its dtypes); no weight is read yet."""
    weights, load_device = weights_at(path), choose_device(device)
    dtypes, form = choose_dtypes(dtype, weights, load_device), check_form(dtype, weights, load_device)
    check_layers(config, weights)
    module = build_empty(lambda: build(config, operations=dtypes.operations, dtype=dtypes.storage), weights)
    filled = fill(module, weights, dtypes, lambda: build(config), load_device, form)
    return manage(filled, load_device), dtypes
