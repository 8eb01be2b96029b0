"""Weights as SDNQ (SD.Next's quantization engine) stores them, widened to bfloat16 while they are loaded.

A matrix is `weight`, codes of 4 to 8 bits that are packed where they are not bytes, times `scale` (out, groups, 1) or
(out, 1), plus `zero_point` where codes have no sign, plus `svd_up` @ `svd_down` where a part of low rank was set aside.
Which codes a layer has stands in config.json. Found out from files of sdnq 0.2.8.
"""

import math
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..text import shown
from .stored import FLOATS, Entry, Stored, refuse

SCALE = ".scale"
OTHERS = ("zero_point", "svd_up", "svd_down")
SWITCHES = (  # settings whose files hold more than is read here
    "use_hadamard",
    "use_codebook",
    "use_codebook_scale",
    "use_quantized_matmul",
    "scale_dtype",
    "zero_point_dtype",
    "modules_quant_config",
)
CODES = re.compile(r"(?P<whole>u?int)(?P<bits>[4-8])|float(?P<width>[4-7])_e(?P<exponent>[1-5])m(?P<mantissa>\d)fn")


def take(source: Path, entries: dict[str, Entry], settings: Mapping) -> dict[str, Stored]:
    """Take the rounded matrices and what belongs to them out of `entries`, as tensors by the model's keys.

    Raises `CheckpointError` for settings or codes that are not read.
    """
    switched = [name for name in SWITCHES if settings.get(name)]
    if switched:
        refuse(source, f"SDNQ with {switched[0]}")
    found = {}
    for layer in [key.removesuffix(SCALE) for key in entries if key.endswith(SCALE)]:
        key = f"{layer}.weight"
        if key in entries:
            found[key] = _matrix(source, layer, entries, _codes_of(key, settings))
    return found


def _codes_of(key: str, settings: Mapping) -> str:
    """The name of a matrix's codes: what its list in the settings says, or else the settings' own."""
    lists = settings.get("modules_dtype_dict") or {}
    named = [dtype for dtype, keys in lists.items() if key in keys or f".{key}" in keys]
    return str(named[0] if named else settings.get("weights_dtype"))


def _matrix(source: Path, layer: str, entries: dict[str, Entry], codes: str) -> Stored:
    weight, scale = entries.pop(f"{layer}.weight"), entries.pop(f"{layer}{SCALE}")
    others = {name: entries.pop(f"{layer}.{name}", None) for name in OTHERS}
    match = CODES.fullmatch(codes)
    if not match:
        refuse(source, f"SDNQ's {shown(codes)}")
    bits = int(match["bits"] or match["width"])
    rows, numbers = scale.shape[0] if scale.shape else 0, weight.nbytes * 8 // bits
    whole = ("U8", "I8") if bits == 8 else ("U8",)
    if weight.dtype not in whole or scale.dtype not in FLOATS or not rows or numbers % rows:
        raise CheckpointError(f"{source}: {layer} does not hold the {codes} numbers that config.json says")
    if match["whole"] == "uint" and others["zero_point"] is None:
        raise CheckpointError(f"{source}: {layer} has codes without a sign and no zero_point; is the file whole?")
    names = tuple(name for name, entry in others.items() if entry is not None)
    shape = (rows, numbers // rows)
    widen = partial(widened, codes=codes, names=names, shape=shape)
    beside = (scale, *(entry for entry in others.values() if entry is not None))
    return Stored(weight, shape, "BF16", 2 * math.prod(shape), beside, widen)


def widened(weight: torch.Tensor, scale: torch.Tensor, *others: torch.Tensor, codes: str, names, shape) -> torch.Tensor:
    """A layer's tensors, `others` by their `names` -> its (out, in) matrix in bfloat16."""
    beside = {name: tensor.float() for name, tensor in zip(names, others, strict=True)}
    numbers = _numbers(weight, codes).view(*scale.shape[:-1], -1) * scale.float()
    if "zero_point" in beside:
        numbers = numbers + beside["zero_point"]
    matrix = numbers.reshape(shape)
    if "svd_up" in beside:
        matrix = matrix.addmm_(beside["svd_up"], beside["svd_down"])
    return matrix.bfloat16()


def _numbers(weight: torch.Tensor, codes: str) -> torch.Tensor:
    """Packed codes -> float32 numbers before their scale."""
    match = CODES.fullmatch(codes)
    if match["width"]:
        found = unpack(weight, int(match["width"]))
        return _float_table(int(match["exponent"]), int(match["mantissa"]))[found.long()]
    bits = int(match["bits"])
    if bits == 8:
        return weight.float()
    middle = 0 if match["whole"] == "uint" else 1 << (bits - 1)
    return unpack(weight, bits).float() - middle


@cache
def _float_table(exponent: int, mantissa: int) -> torch.Tensor:
    """The number of every code of a sign, an exponent and a mantissa without infinities."""
    code = torch.arange(2 << (exponent + mantissa))
    power, fraction = code >> mantissa & (1 << exponent) - 1, (code & (1 << mantissa) - 1) / 2**mantissa
    normal, least = power > 0, 2 - (1 << (exponent - 1))
    size = torch.where(normal, 1 + fraction, fraction) * torch.exp2((power - 1).clamp(min=0) + least)
    return torch.where(code >> (exponent + mantissa) > 0, -size, size)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes of 4 to 7 bits a code -> (N,) uint8 codes.

    Every group of codes has its first ones in the low bits of one byte each; the bits of the others lie above them.
    """
    if bits == 4:
        flat = packed.reshape(-1)
        return torch.stack((flat & 15, flat >> 4), -1).flatten()
    whole = {5: 5, 6: 3, 7: 7}[bits]  # bytes of a group, and codes that have one each
    rows = packed.reshape(-1, whole)
    low, high = rows & (1 << bits) - 1, rows >> bits
    if bits == 7:
        last = sum(high[:, i] << (6 - i) for i in range(7))
        return torch.cat((low, last[:, None]), 1).flatten()
    if bits == 6:
        last = high[:, 0] << 4 | high[:, 1] << 2 | high[:, 2]
        return torch.cat((low, last[:, None]), 1).flatten()
    # of three more codes: three low bits above the first three bytes, two high bits above the last two
    sixth = high[:, 0] | (high[:, 3] & 3) << 3
    seventh = high[:, 1] | (high[:, 4] & 3) << 3
    eighth = high[:, 2] | (high[:, 3] >> 2) << 4 | (high[:, 4] >> 2) << 3
    return torch.cat((low, torch.stack((sixth, seventh, eighth), 1)), 1).flatten()
