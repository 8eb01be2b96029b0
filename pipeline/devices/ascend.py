"""Ascend NPUs: importing torch_npu, setting it up for this package, and what its errors mean."""

import importlib
import importlib.util
import os
import re

import torch

from ..errors import DeviceError
from .memory import explain_out_of_memory, is_out_of_memory
from .npu_pairs import installed_pair

ALLOCATOR = ("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")  # read when torch_npu first allocates
_prepared: set[int] = set()


def require_npu() -> None:
    """Make `torch.npu` work, or raise a DeviceError that says what is wrong with the installation."""
    if not hasattr(torch, "npu"):
        if importlib.util.find_spec("torch_npu") is None:
            raise DeviceError(
                "an NPU was asked for and torch_npu is not installed; install the one made for this torch: "
                f"{installed_pair().command}, after CANN for your card"
            )
        pair = installed_pair()
        if pair.aborts:
            raise DeviceError(pair.fault)
        os.environ.setdefault(*ALLOCATOR)
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(explain_npu_failure(error)) from error
    if not (torch.npu.is_available() and torch.npu.device_count()):
        raise DeviceError(
            "torch_npu works and sees no NPU; check that 'npu-smi info' lists one, that ASCEND_RT_VISIBLE_DEVICES does "
            "not hide it, and that a container was started with --device /dev/davinci0 and the driver's folders"
        )


def prepare_npu(device: torch.device) -> None:
    """Take the device, and set torch_npu for the whole process, once a device."""
    if device.index in _prepared:
        return
    try:
        torch.zeros(1, device=device)  # takes the device, which fails here and not amid loading
    except RuntimeError as error:
        full = is_out_of_memory(error)
        raise DeviceError(explain_out_of_memory("nothing", device) if full else explain_npu_failure(error)) from error
    _prepared.add(device.index)
    torch.npu.set_compile_mode(jit_compile=False)  # operators come compiled; compiling costs seconds a shape
    torch.npu.config.allow_internal_format = False  # FRACTAL_NZ weights cannot be viewed, saved or fused
    torch.npu.conv.allow_hf32 = False  # the VAE's float32 is float32
    torch.npu.matmul.allow_hf32 = False


def explain_npu_failure(error: BaseException) -> str:
    """What an import of torch_npu that failed means, and what to do."""
    return explain_npu_message(" ".join(str(cause) for cause in _causes(error)))


def explain_npu_message(text: str) -> str:
    if re.search(r"lib(hccl|ascendcl|ge_runner|graph|acl_\w+|opapi)\.so", text):
        return (
            f"torch_npu cannot find CANN ({text}). Install CANN for your card, then run "
            "'source /usr/local/Ascend/ascend-toolkit/set_env.sh' in this shell. Until then plain 'import torch' fails "
            "too; TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps the CPU usable"
        )
    if re.search(r"507033|507899|107002|Failed to start the device|another process", text):
        return (
            f"the NPU cannot be taken ({first_line(text)}): another process or container holds it, or its driver is "
            "in a bad state. 'npu-smi info' shows who uses it; wait, take another card with "
            "ASCEND_RT_VISIBLE_DEVICES=1 or --device npu:1, or draw on the CPU meanwhile with --device cpu"
        )
    if "undefined symbol" in text:
        return (
            f"torch_npu and torch {torch.__version__} do not belong together ({text}); install "
            f"{installed_pair().requirement!r}"
        )
    if "ASCEND_" in text:
        return f"CANN is installed in part, or its environment is old ({text}); source CANN's set_env.sh again"
    return f"torch_npu cannot be imported: {text}. 'glm-image doctor' shows versions and environment"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__
