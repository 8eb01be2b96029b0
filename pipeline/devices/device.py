"""Which device: the user's choice or the best one present, and waiting for it.

Models never name a vendor; they ask nothing and run where their weights are.
"""

import importlib.util
import logging
from contextlib import contextmanager

import torch

from ..errors import DeviceError, InputError
from ..text import shown
from .ascend import first_line, prepare_npu, require_npu

logger = logging.getLogger(__name__)
ACCELERATORS = ("npu", "cuda", "xpu", "mps")


def resolve_device(choice: str | torch.device | None = None) -> torch.device:
    """The user's device, or the best one present, with an index; an NPU is set up for this package on the way."""
    device = _best_present() if choice is None or choice == "auto" else _parse(choice)
    if device.type == "npu":
        require_npu()
    if device.type != "cpu":
        device = _existing(device)
    elif device.index:
        raise DeviceError(f"device {device} does not exist here: all cores are one device; use cpu")
    if device.type == "npu":
        prepare_npu(device)
    return device


def _best_present() -> torch.device:
    """The accelerator that torch knows, or an NPU that torch_npu finds, or the CPU with the reason in the log."""
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator())
    if not hasattr(torch, "npu") and importlib.util.find_spec("torch_npu") is not None:
        try:
            require_npu()
            return torch.device("npu")
        except DeviceError as error:
            logger.warning("running on the CPU: %s", error)
    return torch.device("cpu")


def _parse(choice: str | torch.device) -> torch.device:
    """torch knows the name `npu` only after torch_npu is imported."""
    if str(choice).startswith("npu"):
        require_npu()
    try:
        return torch.device(choice)
    except (RuntimeError, TypeError):
        raise InputError(f"device {shown(choice)} is not known; use auto, cpu, cuda, cuda:1, npu or npu:1") from None


def _existing(device: torch.device) -> torch.device:
    count = device_count(device.type)
    index = device.index or 0
    if index >= count:
        present = ", ".join(map(str, available_devices()))
        raise DeviceError(f"device {device} does not exist here; present: {present}")
    return torch.device(device.type, index)


def device_count(kind: str) -> int:
    """How many devices of a type this process sees."""
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0


def available_devices() -> list[torch.device]:
    """Every accelerator of this process, then the CPU."""
    return [torch.device(kind, i) for kind in ACCELERATORS for i in range(device_count(kind))] + [torch.device("cpu")]


def require_compiler(device: torch.device) -> None:
    """Compile and run a small function, or raise a DeviceError that says what is missing."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        raise DeviceError(
            f"torch.compile does not work on {device} ({first_line(str(error))}); it needs a C++ compiler such as g++ "
            "for a CPU and Triton for a card. Leave --compile away: it is never needed"
        ) from error


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(*([] if device.type == "mps" else [device]))


def assert_on(device: torch.device, **tensors: torch.Tensor) -> None:
    """Stage boundaries check this, because torch_npu computes with operands of two cards without a word."""
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise RuntimeError(f"{name} is on {tensor.device}, this stage runs on {device}")


@contextmanager
def current(device: torch.device):
    """Makes it the current device; some kernels run on that one whatever their operands say."""
    if device.type not in ("npu", "cuda"):
        yield
        return
    with getattr(torch, device.type).device(device):
        yield
