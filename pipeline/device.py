"""Where tensors live: the one place that chooses a device and a dtype and asks a device about its memory."""

import torch

from .errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_device(choice: str | torch.device | None = None) -> torch.device:
    """The user's device, or the best one present."""
    if choice is None or choice == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(accelerator or "cpu")
    try:
        return torch.device(choice)
    except RuntimeError:
        raise InputError(f"device {choice!r} is not known; use auto, cpu, cuda, cuda:1, npu or npu:1") from None


def resolve_dtype(choice: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The user's dtype, or bf16 on accelerators and fp32 on the CPU."""
    if isinstance(choice, torch.dtype):
        return choice
    if choice is None or choice == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if choice not in DTYPES:
        raise InputError(f"dtype {choice!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[choice]


def empty_cache(device: torch.device) -> None:
    """Give cached blocks back to the device, so that the next component finds them."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
