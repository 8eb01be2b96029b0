"""Between C and the kernels: arguments decoded, rules of the hardware checked, graphs recorded and replayed.

Rules that hold always: at most 8 dimensions; nothing but device copies and operators in a graph.
Rules with FAKE_CANN_STRICT=1, each of which costs speed, precision or correctness on a real card: no float64, no
complex; no bfloat16 on Ascend310P; operands on the device, and all on the same one; boolean attention masks.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import os
import sys
import traceback

import torch

# The same library that torch_npu is linked against: the loader finds it by name, already loaded.
LIBRARY = ctypes.CDLL("libascendcl.so", mode=ctypes.RTLD_GLOBAL)
LIBRARY.fake_cann_kind.argtypes = [ctypes.c_uint64]
LIBRARY.fake_cann_owner.argtypes = [ctypes.c_void_p]
LIBRARY.set_error.argtypes = [ctypes.c_char_p]
LIBRARY.aclrtGetSocName.restype = ctypes.c_char_p

OK, BAD_ARGUMENT, NO_KERNEL, KERNEL_FAILED = 0, 161002, 561103, 561000
MAX_RANK, MAX_DIMENSIONS, MAX_ARGUMENTS = 16, 8, 48
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    7: torch.uint16,
    8: torch.uint32,
    9: torch.int64,
    10: torch.uint64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
}
UNSUPPORTED = {torch.float64, torch.complex64, torch.complex128}
STRICT = os.environ.get("FAKE_CANN_STRICT", "0") == "1"

launched: collections.Counter = collections.Counter()
"""How often each operator was launched or captured."""
_trace: list[str] | None = None


class Handle(ctypes.Structure):
    """struct handle of handles.c."""

    _fields_ = [
        ("live", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
        ("offset", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("items", ctypes.c_void_p),
        ("value", ctypes.c_uint8 * 16),
    ]


class Call(ctypes.Structure):
    """struct call of fake_cann.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("count", ctypes.c_int32),
        ("arguments", ctypes.c_uint64 * MAX_ARGUMENTS),
        ("reals", ctypes.c_double * 8),
    ]


TENSOR, SCALAR, INTS, FLOATS, BOOLS, TENSORS, SCALARS = range(1, 8)
ITEM_TYPES = {
    INTS: ctypes.c_int64,
    FLOATS: ctypes.c_float,
    BOOLS: ctypes.c_bool,
    TENSORS: ctypes.c_uint64,
    SCALARS: ctypes.c_uint64,
}
LAYOUT_ARGUMENT = {
    "aclnnFlashAttentionScoreGrad": 16,
    "aclnnFlashAttentionScore": 11,
    "aclnnFusedInferAttentionScoreV": 27,
}


class RefusedError(Exception):
    """A call that a real card would refuse, or that the tests forbid."""


# ---- counters ----


@dataclasses.dataclass
class Counters:
    """struct counters of fake_cann.h."""

    host_to_device_copies: int = 0
    host_to_device_bytes: int = 0
    device_to_host_copies: int = 0
    device_to_host_bytes: int = 0
    device_to_device_copies: int = 0
    device_to_device_bytes: int = 0
    synchronizations: int = 0
    launches: int = 0
    captured: int = 0
    replays: int = 0


def counters() -> Counters:
    """Totals since the process started."""
    values = (ctypes.c_uint64 * len(dataclasses.fields(Counters)))()
    LIBRARY.fake_cann_counters(values)
    return Counters(*values)


@contextlib.contextmanager
def count():
    """Yields Counters that, after the block, hold what happened inside it."""
    before, seen = counters(), Counters()
    yield seen
    after = counters()
    for field in dataclasses.fields(Counters):
        setattr(seen, field.name, getattr(after, field.name) - getattr(before, field.name))


@contextlib.contextmanager
def traced():
    """Yields a list that gets a line, with dtypes and shapes, for every operator launched or captured in the block."""
    global _trace
    _trace = lines = []
    try:
        yield lines
    finally:
        _trace = None


def live_handles() -> int:
    """Argument handles not yet destroyed; 0 between operators."""
    return LIBRARY.fake_cann_live_handles()


# ---- arguments ----


def tensor_view(handle: Handle) -> torch.Tensor:
    """A CPU tensor over the memory that the handle describes."""
    if handle.rank > MAX_DIMENSIONS:
        raise RefusedError(f"a tensor of {handle.rank} dimensions; CANN takes at most {MAX_DIMENSIONS}")
    shape, strides = list(handle.shape[: handle.rank]), list(handle.strides[: handle.rank])
    dtype = DTYPES[handle.dtype]
    if not handle.data or 0 in shape:
        return torch.empty(shape, dtype=dtype, device="cpu")
    extent = handle.offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    memory = (ctypes.c_char * (extent * dtype.itemsize)).from_address(handle.data)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides, handle.offset)


def decode(number: int):
    """An argument as a tensor, a number or a list. Unsigned 64-bit numbers are taken as signed."""
    kind = LIBRARY.fake_cann_kind(number)
    if not kind:
        return number - (1 << 64) if number >> 63 else number
    handle = Handle.from_address(number)
    if kind == TENSOR:
        return tensor_view(handle)
    if kind == SCALAR:
        return torch.frombuffer(bytearray(handle.value), dtype=DTYPES[handle.dtype])[0].item()
    items = list((ITEM_TYPES[kind] * handle.count).from_address(handle.items)) if handle.count else []
    return [decode(item) for item in items] if kind in (TENSORS, SCALARS) else items


def decode_call(call: Call, name: str) -> list:
    arguments = [decode(number) for number in call.arguments[: call.count]]
    for prefix, index in LAYOUT_ARGUMENT.items():
        if name.startswith(prefix):
            arguments[index] = ctypes.string_at(arguments[index]).decode()
            break
    return arguments


def set_shape(number: int, *shape: int) -> None:
    """Changes an output's shape, for operators whose result size depends on the data."""
    handle = Handle.from_address(number)
    handle.rank = len(shape)
    handle.shape[: len(shape)] = shape


def describe(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"[{', '.join(map(describe, value))}]" if isinstance(value, list) else str(value)


# ---- rules ----


@functools.cache
def soc_name() -> str:
    return LIBRARY.aclrtGetSocName().decode()


def tensors_of(arguments: list) -> list[torch.Tensor]:
    nested = [item for value in arguments if isinstance(value, list) for item in value]
    return [value for value in (*arguments, *nested) if isinstance(value, torch.Tensor)]


def check_strict(name: str, arguments: list) -> None:
    tensors = tensors_of(arguments)
    forbidden = UNSUPPORTED | ({torch.bfloat16} if soc_name().startswith("Ascend310P") else set())
    for tensor in tensors:
        if tensor.dtype in forbidden:
            raise RefusedError(f"{tensor.dtype} on {soc_name()}")
    owners = {LIBRARY.fake_cann_owner(tensor.data_ptr()) for tensor in tensors if tensor.numel()}
    if len(owners) > 1 or -1 in owners:
        raise RefusedError(f"operands in the memory of devices {sorted(owners)} (-1 is the host)")
    if name == "aclnnFlashAttentionScore":
        mask = arguments[6]
        if soc_name().startswith("Ascend310P"):
            raise RefusedError("no fused attention on Ascend310P")
        if isinstance(mask, torch.Tensor) and mask.dtype not in (torch.bool, torch.uint8):
            raise RefusedError(f"an attention mask of {mask.dtype}; masks are boolean")


# ---- graphs ----


BEGIN, END, REPLAY, DESTROY = range(4)
_graphs: dict[int, list] = {}
_recording: list | None = None


def graph_sizes() -> dict[int, int]:
    """Graph -> how many operators and copies one replay runs."""
    return {graph: len(steps) for graph, steps in _graphs.items()}


def on_graph(action: int, graph: int) -> int:
    global _recording
    if action == BEGIN:
        _recording = _graphs[graph] = []
    elif action == END:
        _recording = None
    elif action == REPLAY:
        return guarded(lambda: [step() for step in _graphs[graph]])
    elif action == DESTROY:
        _graphs.pop(graph, None)
    return OK


def on_copy(destination: int, source: int, size: int) -> int:
    _recording.append(functools.partial(ctypes.memmove, destination, source, size))
    return OK


# ---- calls ----


def fail(code: int, message: str) -> int:
    LIBRARY.set_error(message.encode())
    print("fake CANN:", message, file=sys.stderr)
    return code


def guarded(run) -> int:
    """Runs on plain CPU tensors whatever modes the caller has on; an exception becomes CANN's error."""
    with torch.no_grad(), torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        try:
            run()
        except RefusedError as error:
            return fail(BAD_ARGUMENT, str(error))
        except Exception:
            return fail(KERNEL_FAILED, traceback.format_exc())
    return OK


def on_call(kernels: dict, pointer) -> int:
    call = pointer.contents
    name = call.name.decode()
    launched[name] += 1

    def run() -> None:
        arguments = decode_call(call, name)
        if _trace is not None:
            _trace.append(f"{name}({', '.join(map(describe, arguments))})")
        if STRICT:
            check_strict(name, arguments)
        if name not in kernels:
            raise NotImplementedError(f"no kernel for {name}({', '.join(map(describe, arguments))})")
        function, reals, raw = kernels[name]
        if raw:
            arguments.append(list(call.arguments[: call.count]))
        step = functools.partial(function, *([list(call.reals)] if reals else []), *arguments)
        if _recording is None:
            step()
        else:
            _recording.append(step)

    return guarded(run)


class Handlers(ctypes.Structure):
    """struct handlers of fake_cann.h."""

    RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Call))
    GRAPH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint64)
    COPY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    _fields_ = [("run", RUN), ("graph", GRAPH), ("copy", COPY)]


_handlers = None  # keeps the C callbacks alive


def connect(kernels: dict) -> None:
    """Gives the C half its three callbacks."""
    global _handlers
    _handlers = Handlers(
        Handlers.RUN(functools.partial(on_call, kernels)), Handlers.GRAPH(on_graph), Handlers.COPY(on_copy)
    )
    LIBRARY.fake_cann_set_handlers(ctypes.byref(_handlers))
