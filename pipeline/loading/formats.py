"""In which format weight files lie: recognised by their keys, dtypes and notes, and read or refused by name.

A weight of 8 or 4 bits means nothing without the rule that it was made by, and shapes alone do not tell rules apart. So
a file that shows a sign of a format which is not read is refused before its first number, in one sentence.

Read are whole weights; the forms of `models/weight_forms.py`, as they lie; int8 weights of ComfyUI with one scale for
all of a layer and of torchao with one a row; and, widened while they are loaded, fp8 weights of ComfyUI
(`comfy_quant`, `fp8_scaled`) and SDNQ's.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from ..devices.quantised_products import GROUP
from ..errors import CheckpointError
from ..text import shown
from . import sdnq
from .stored import FLOATS, Entry, Layout, Stored, open_shard, refuse

MARK = "comfy_quant"  # a layer's key whose bytes are JSON about its weight, as ComfyUI writes it
INT8, INT4 = "int8_tensorwise", "glm_image_int4"  # `format` of the forms of 8 bits (ComfyUI's) and 4 bits (ours)
FP8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
METHODS = {  # `quant_method` of config.json -> the format's name
    "sdnq": "SDNQ",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fine-grained FP8",
    "gguf": "GGUF",
    "gptq": "GPTQ",
    "modelopt": "ModelOpt",
    "quanto": "Quanto",
    "torchao": "torchao",
}
SIGNS = (  # ends of keys that only one family of formats has, the first that is found naming it
    ("._weight_qdata", "torchao"),
    ("_weight_qdata", "torchao"),
    (".weight_packed", "compressed-tensors"),
    (".weight_global_scale", "compressed-tensors NVFP4"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes int8"),
    (".g_idx", "GPTQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".wscales", "nunchaku (SVDQuant)"),
    (".smooth_factor", "nunchaku (SVDQuant)"),
    (".svd_up", "SDNQ"),
    (".weight._data", "Quanto"),
    (".weight_scale_2", "NVFP4 without ComfyUI's note about it"),
    (".weight_scale_inv", "fine-grained FP8"),
)
QDATA = "._weight_qdata"
CODES = ("I8", "U8", "I16", "I32", "I64", "F4", "F4_E2M1", "F6_E2M3", "F6_E3M2", "F8_E8M0")


def layout_of(source: Path, entries: dict[str, Entry], noted: Mapping[str, dict], settings) -> Layout:
    """How the entries of a component's files (by the model's keys) become its tensors.

    `noted` are ComfyUI's notes in the files' metadata (layer -> rule), `settings` is `quantization_config` of
    config.json. Raises `CheckpointError` that names the format for any that is not read.
    """
    notes = dict(noted) | _marks(source, entries)
    rest = {key: entry for key, entry in entries.items() if not key.endswith(f".{MARK}")}
    if "scaled_fp8" in rest:
        del rest["scaled_fp8"]
        notes = _notes_of_scaled_fp8(rest)
    layout, method = Layout(), settings.get("quant_method") if isinstance(settings, dict) else None
    if method == "sdnq":
        layout.tensors |= sdnq.take(source, rest, settings)
        settings = None
    elif method == "torchao" and (codes := [key for key in rest if key.endswith(QDATA)]):
        notes |= _notes_of_torchao(source, rest, codes)
        settings = None
    _refuse_others(source, rest, notes, settings)
    for layer, note in notes.items():
        _place(source, layout, rest, layer, note)
    layout.tensors |= {key: Stored(e, e.shape, e.dtype, e.nbytes) for key, e in rest.items()}
    return layout


def _marks(source: Path, entries: Mapping[str, Entry]) -> dict[str, dict]:
    """layer -> what the bytes of its mark say."""
    marks = {key: entry for key, entry in entries.items() if key.endswith(f".{MARK}")}
    found = {}
    for shard in dict.fromkeys(entry.shard for entry in marks.values()):
        with open_shard(shard) as file:
            for key, entry in marks.items():
                if entry.shard == shard and entry.nbytes <= 4096:
                    try:
                        found[key.removesuffix(f".{MARK}")] = dict(
                            json.loads(bytes(file.get_tensor(entry.key).tolist()))
                        )
                    except (ValueError, TypeError):
                        raise CheckpointError(f"{source}: {key} is no JSON; is the file damaged?") from None
    return found


def mark(form: str) -> torch.Tensor:
    """The bytes that say in a file which form a layer has."""
    rule = {"w8": {"format": INT8}, "w4": {"format": INT4, "group_size": GROUP}}[form]
    return torch.tensor(list(json.dumps(rule).encode()), dtype=torch.uint8)


def _notes_of_scaled_fp8(entries: dict[str, Entry]) -> dict[str, dict]:
    """The older form of ComfyUI's fp8: every layer with a `scale_weight` has one, whose key is renamed here."""
    layers = [key.removesuffix(".scale_weight") for key in entries if key.endswith(".scale_weight")]
    for layer in layers:
        entries[f"{layer}.weight_scale"] = entries.pop(f"{layer}.scale_weight")
        entries.pop(f"{layer}.scale_input", None)
    names = {dtype: name for name, dtype in FP8.items()}
    weights = {layer: entries.get(f"{layer}.weight") for layer in layers}
    return {layer: {"format": names.get(weight.dtype, weight.dtype)} for layer, weight in weights.items() if weight}


def _notes_of_torchao(source: Path, entries: dict[str, Entry], codes: list[str]) -> dict[str, dict]:
    """int8 weights with one scale a row, as diffusers and transformers save them: keys become those of ComfyUI."""
    notes = {}
    for key in codes:
        layer, data = key.removesuffix(QDATA), entries.pop(key)
        zeros = entries.pop(f"{layer}._weight_zero_point", None)
        scale = entries.pop(f"{layer}._weight_scale", None)
        if data.dtype != "I8" or len(data.shape) != 2 or scale is None or math.prod(scale.shape) != data.shape[0]:
            refuse(source, "torchao, other than int8 with one scale a row")
        if zeros is not None and _any(zeros):
            refuse(source, "torchao with zero points")
        entries[f"{layer}.weight"], entries[f"{layer}.weight_scale"] = data, scale
        notes[layer] = {"format": INT8}
    return notes


def _any(entry: Entry) -> bool:
    with open_shard(entry.shard) as file:
        return bool(file.get_tensor(entry.key).any())


def _refuse_others(source: Path, entries: Mapping[str, Entry], notes: Mapping[str, dict], settings) -> None:
    """Raise for files that show a sign of a format that no note explains."""
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if settings:
        refuse(source, METHODS.get(method, f"an unknown format ({shown(method)})"))
    for end, name in SIGNS:
        for key in entries:
            if key.endswith(end) and key[: -len(end)] not in notes:
                refuse(source, name)
    for key, entry in entries.items():
        layer, _, own = key.rpartition(".")
        if layer not in notes and (entry.dtype in CODES or own in ("weight_scale", "scale_weight")):
            refuse(source, f"an unknown format ({shown(key)} holds {entry.dtype} numbers)")


def _place(source: Path, layout: Layout, entries: dict[str, Entry], layer: str, note: Mapping) -> None:
    """Move what a noted layer has from the entries to the layout."""
    form, weight = note.get("format"), entries.pop(f"{layer}.weight", None)
    if weight is None or len(weight.shape) != 2:
        raise CheckpointError(f"{source}: {layer} is noted as {shown(form)} and has no matrix; is the file damaged?")
    if form == INT8 and not note.get("convrot") and weight.dtype == "I8":
        _place_int8(source, layout, entries, layer, weight)
    elif form == INT4 and note.get("group_size") == GROUP and weight.dtype == "U8":
        layout.forms[layer] = "w4"
        layout.tensors[f"{layer}.weight"] = Stored(weight, weight.shape, weight.dtype, weight.nbytes)
    elif weight.dtype == FP8.get(form):
        scale = _scale(source, entries, layer, weight.shape[0])
        entries.pop(f"{layer}.input_scale", None)  # for products in 8 bits, which are not computed here
        size = 2 * math.prod(weight.shape)
        layout.tensors[f"{layer}.weight"] = Stored(weight, weight.shape, "BF16", size, (scale,), _scaled)
    else:
        rotated = " with rotation (convrot)" if note.get("convrot") else ""
        refuse(source, f"ComfyUI's {shown(form)}{rotated}")


def _place_int8(source: Path, layout: Layout, entries: dict[str, Entry], layer: str, weight: Entry) -> None:
    """One scale for all rows is given to each."""
    rows = weight.shape[0]
    scale = _scale(source, entries, layer, rows)
    entries.pop(f"{layer}.input_scale", None)
    layout.forms[layer] = "w8"
    layout.tensors[f"{layer}.weight"] = Stored(weight, weight.shape, weight.dtype, weight.nbytes)
    each = Stored(scale, (rows, 1), scale.dtype, rows * FLOATS[scale.dtype], widen=lambda s: _column(s, rows))
    layout.tensors[f"{layer}.weight_scale"] = each


def _scale(source: Path, entries: dict[str, Entry], layer: str, rows: int) -> Entry:
    """A layer's scale: one number, or one a row."""
    scale = entries.pop(f"{layer}.weight_scale", None)
    if scale is not None and scale.dtype in FLOATS and math.prod(scale.shape) in (1, rows):
        return scale
    raise CheckpointError(f"{source}: {layer} has 8 bits and no scale for all or one a row; is the file whole?")


def _column(scale: torch.Tensor, rows: int) -> torch.Tensor:
    return scale.reshape(-1, 1).expand(rows, 1)


def _scaled(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """fp8 numbers times their scale, in bfloat16."""
    return (weight.float() * scale.float().reshape(-1, 1)).bfloat16()
