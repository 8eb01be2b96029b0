"""What a device computes well: dtypes, fused kernels, graphs.

What the vendors' names mean: `Ascend910B*` is A2 (the Atlas 800T A2), `Ascend910_93*` is A3, `Ascend950*` is A5,
`Ascend310P*` an inference device without bfloat16.
"""

import functools
from dataclasses import dataclass

import torch

from ..errors import GlmImageError, InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ASCEND_FAMILIES = {"Ascend910_93": "A3", "Ascend910B": "A2", "Ascend950": "A5", "Ascend310P": "310P"}


@dataclass(frozen=True)
class Capabilities:
    """What a device does well. `fused`: torch_npu has fused kernels for it. `graph`: a decode step can be captured."""

    family: str
    bfloat16: bool
    fused: bool
    graph: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that weights take by default."""
        if self.family == "cpu":
            return torch.float32
        return torch.bfloat16 if self.bfloat16 else torch.float16


ASCEND = {
    "A2": Capabilities("A2", bfloat16=True, fused=True, graph=True),
    "A3": Capabilities("A3", bfloat16=True, fused=True, graph=True),
    "A5": Capabilities("A5", bfloat16=True, fused=True, graph=True),
    "310P": Capabilities("310P", bfloat16=False, fused=False, graph=False),
}


def capabilities(device: torch.device) -> Capabilities:
    """By vendor and, for Ascend, by chip. An unknown chip gets what torch_npu reports and nothing fast."""
    if device.type == "npu":
        return _ascend(torch.npu.get_device_name(device))
    if device.type == "cuda":
        return Capabilities("cuda", bfloat16=torch.cuda.is_bf16_supported(), fused=False, graph=True)
    return Capabilities(device.type, bfloat16=True, fused=False, graph=False)


def _ascend(soc: str) -> Capabilities:
    for prefix, family in ASCEND_FAMILIES.items():
        if soc.startswith(prefix):
            return ASCEND[family]
    return Capabilities(soc, bfloat16=bool(torch.npu.is_bf16_supported()), fused=False, graph=False)


def resolve_dtype(
    choice: str | torch.dtype | None, device: torch.device, component: str = "", stored: torch.dtype | None = None
) -> torch.dtype:
    """The user's dtype, or the device's for this component (a checkpoint folder's name) whose files have `stored`.

    In float16 the VAE gives black images, so it runs in float32 where there is no bfloat16. A CPU computes bfloat16
    files as they are if it has instructions for it, which halves time and memory, and all others in float32.
    """
    if isinstance(choice, torch.dtype):
        return _supported(choice, device)
    if choice is None or choice == "auto":
        dtype = capabilities(device).dtype
        if device.type == "cpu" and stored == torch.bfloat16 and multiplies_bfloat16():
            return torch.bfloat16
    elif choice not in DTYPES:
        raise InputError(f"dtype {choice!r} is not known; use auto, {', '.join(DTYPES)}")
    else:
        dtype = _supported(DTYPES[choice], device)
    return torch.float32 if component == "vae" and dtype == torch.float16 else dtype


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, False where torch is too old to tell."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _supported(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == torch.bfloat16 and not capabilities(device).bfloat16:
        raise InputError(f"{device} ({capabilities(device).family}) has no bfloat16; use fp16, fp32 or auto")
    return dtype


def check_finite(x: torch.Tensor, stage: str) -> torch.Tensor:
    """The tensor; raises when it holds NaN or infinity. Waits for the device, so it is asked once a stage."""
    if torch.isfinite(x).all():
        return x
    if x.dtype == torch.float16:
        raise GlmImageError(
            f"{stage}: float16 overflowed to NaN or infinity; use --dtype fp32, or bf16 where it exists"
        )
    raise GlmImageError(
        f"{stage}: the result holds NaN or infinity; check the weights, the LoRA and the settings, or use another dtype"
    )
