"""How much memory a device has, and what to do when it runs out."""

import logging
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import DeviceError

logger = logging.getLogger(__name__)
# What torch_npu and CANN say when memory runs out; torch 2.13 raises torch.OutOfMemoryError, older pairs do not.
OUT_OF_MEMORY = re.compile(r"out of memory|error code is 207001|EL0004|rtMalloc failed", re.IGNORECASE)


@dataclass(frozen=True)
class Memory:
    """Bytes. `free` counts what the allocator holds unused, because a new tensor can have it."""

    free: int
    total: int


def memory_of(device: torch.device) -> Memory:
    """Free and total bytes."""
    if device.type == "cpu":
        return _host_memory()
    if device.type == "mps":
        limit = torch.mps.recommended_max_memory()
        return Memory(limit - torch.mps.driver_allocated_memory(), limit)
    module = getattr(torch, device.type)
    free, total = module.mem_get_info(device)
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return Memory(free + unused, total)


def _host_memory() -> Memory:
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if not page:
        raise DeviceError("this system does not tell its memory; choose a placement yourself")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo") as file:
            available = re.search(r"MemAvailable:\s+(\d+)", file.read())
    except FileNotFoundError:
        available = None
    return Memory(int(available[1]) << 10 if available else total, total)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any vendor or age means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def explain_out_of_memory(what: str, device: torch.device) -> str:
    """What to do when loading or drawing ran out of memory."""
    size = memory_of(device)
    return (
        f"{what} does not fit on {device}, of whose {size.total / 2**30:.1f} GiB {size.free / 2**30:.1f} are free; "
        "other programs may hold memory there. Use --planner-weights w8 and --decoder-weights w8 ('glm-image quantize' "
        "writes them), --offload phases or stream, a smaller image, a second card (--decoder-device), or --device cpu"
    )


@contextmanager
def explaining_out_of_memory(what: str, device: torch.device):
    """Turns a failed allocation into a DeviceError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(explain_out_of_memory(what, device)) from error


def retry_smaller(device: torch.device, whole: Callable[[], torch.Tensor], tiled: Callable[[], torch.Tensor]):
    """`whole()`, or, when it runs out of memory, `tiled()` once the device's cache is empty."""
    try:
        return whole()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("out of memory on %s; going on in tiles", device)
    empty_cache(device)  # after the handler: its traceback kept the failed attempt's tensors alive
    return tiled()


def empty_cache(device: torch.device) -> None:
    """Give cached blocks back to the device, so that the next component finds them."""
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()
