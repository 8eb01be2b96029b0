"""Where tensors live: the one place that knows devices by name, what each can do, and how to ask it about memory.

Models never name a vendor; they ask nothing and run where their weights are. What the vendors' names mean:
`Ascend910B*` is A2 (the Atlas 800T A2), `Ascend910_93*` is A3, `Ascend950*` is A5, `Ascend310P*` an inference card
without bfloat16.
"""

import functools
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import GlmImageError, InputError

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ACCELERATORS = ("npu", "cuda", "xpu", "mps")
ALLOCATOR = ("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")  # read when torch_npu first allocates
ASCEND_FAMILIES = {"Ascend910_93": "A3", "Ascend910B": "A2", "Ascend950": "A5", "Ascend310P": "310P"}
# What torch_npu and CANN say when memory runs out; torch 2.13 raises torch.OutOfMemoryError, older pairs do not.
OUT_OF_MEMORY = re.compile(r"out of memory|error code is 207001|EL0004|rtMalloc failed", re.IGNORECASE)


class DeviceError(GlmImageError):
    """A device was asked for that cannot be had; the message explains the installation's fault in one paragraph."""


@dataclass(frozen=True)
class Capabilities:
    """What a device does well. `fused`: torch_npu's one-kernel forms. `graph`: a decode step can be captured."""

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


@dataclass(frozen=True)
class Memory:
    """Bytes. `free` counts what the allocator holds unused, because a new tensor can have it."""

    free: int
    total: int


# ---- choice ----


def resolve_device(choice: str | torch.device | None = None) -> torch.device:
    """The user's device, or the best one present, with an index; an NPU is set up for this package on the way."""
    device = _best_present() if choice is None or choice == "auto" else _parse(choice)
    if device.type == "npu":
        require_npu()
    if device.type != "cpu":
        device = _existing(device)
    if device.type == "npu":
        _prepare_npu(device)
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
    except RuntimeError:
        raise InputError(f"device {choice!r} is not known; use auto, cpu, cuda, cuda:1, npu or npu:1") from None


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


def require_npu() -> None:
    """Make `torch.npu` work, or raise a DeviceError that says what is wrong with the installation."""
    if not hasattr(torch, "npu"):
        if importlib.util.find_spec("torch_npu") is None:
            raise DeviceError(
                "an NPU was asked for and torch_npu is not installed; install the one made for this torch: "
                f"pip install 'torch-npu=={_minor(torch.__version__)}.*', after CANN for your card"
            )
        os.environ.setdefault(*ALLOCATOR)
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(explain_npu_failure(error)) from error
    if not device_count("npu"):
        raise DeviceError(
            "torch_npu works and sees no NPU; check that 'npu-smi info' lists one, that ASCEND_RT_VISIBLE_DEVICES does "
            "not hide it, and that a container was started with --device /dev/davinci0 and the driver's folders"
        )


def require_compiler(device: torch.device) -> None:
    """Compile and run a small function, or raise a DeviceError that says what is missing."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        raise DeviceError(
            f"torch.compile does not work on {device} ({_first_line(str(error))}); it needs a C++ compiler such as g++ "
            "for a CPU and Triton for a card. Leave --compile away: it is never needed"
        ) from error


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def explain_npu_failure(error: BaseException) -> str:
    """What an import of torch_npu that failed means, and what to do."""
    text = " ".join(str(cause) for cause in _causes(error))
    if re.search(r"lib(hccl|ascendcl|ge_runner|graph|acl_\w+|opapi)\.so", text):
        return (
            f"torch_npu cannot find CANN ({text}). Install CANN for your card, then run "
            "'source /usr/local/Ascend/ascend-toolkit/set_env.sh' in this shell. Until then plain 'import torch' fails "
            "too; TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps the CPU usable"
        )
    if re.search(r"507033|507899|107002|Failed to start the device|another process", text):
        return (
            f"the NPU cannot be taken ({_first_line(text)}): another process or container holds it, or its driver is "
            "in a bad state. 'npu-smi info' shows who uses it; wait, take another card with "
            "ASCEND_RT_VISIBLE_DEVICES=1 or --device npu:1, or draw on the CPU meanwhile with --device cpu"
        )
    if "undefined symbol" in text:
        return (
            f"torch_npu and torch {torch.__version__} do not belong together ({text}); install "
            f"'torch-npu=={_minor(torch.__version__)}.*'"
        )
    if "ASCEND_" in text:
        return f"CANN is installed in part, or its environment is old ({text}); source CANN's set_env.sh again"
    return f"torch_npu cannot be imported: {text}. 'glm-image doctor' shows versions and environment"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__


# ---- what a device can do ----


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
    """The tensor; raises when float16 overflowed. Other dtypes have the range and cost no wait for the device."""
    if x.dtype == torch.float16 and not torch.isfinite(x).all():
        raise GlmImageError(
            f"{stage}: float16 overflowed to NaN or infinity; use --dtype fp32, or bf16 where it exists"
        )
    return x


# ---- memory and waiting ----


def memory(device: torch.device) -> Memory:
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
    size = memory(device)
    return (
        f"{what} does not fit on {device}, of whose {size.total / 2**30:.1f} GiB {size.free / 2**30:.1f} are free; "
        "other programs may hold memory there. Use --offload phases or --offload stream, a smaller image, "
        "--decoder-device for a second card, or --device cpu"
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


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(*([] if device.type == "mps" else [device]))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device without waiting: only pinned memory is copied while the device works."""
    if device.type in ("npu", "cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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


# ---- NPU settings ----

_prepared: set[int] = set()


def _prepare_npu(device: torch.device) -> None:
    """Process-wide settings of torch_npu, and the kernels' forms for this chip. Once a device."""
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
    from . import kernels
    from . import npu_kernels as npu

    kernels.use_forms("npu", **(npu.FORMS if capabilities(device).fused else npu.CAREFUL_FORMS))
