"""What is installed, what it can do, what is wrong and what to do about it.

Every check is a generator of results. Software comes first and without importing torch, so that a broken installation
is explained, never a traceback; torch is imported by the checks of devices.
"""

import platform
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from .findings import Check, CheckContext, CheckResult, Wanted, run_checks
from .software import check_cann, check_environment, check_packages, check_python, check_torch, check_torch_npu


def examine(context: CheckContext, model_info: bool = False) -> list[CheckResult]:
    """Results of all checks; `model_info` counts the release's parameters too."""
    return run_checks(CHECKS + ((check_model_info,) if model_info else ()), context)


def check_devices(context: CheckContext) -> Iterator[CheckResult]:
    """Every device with what it can do; then the one that will be used."""
    from ..devices.ascend import explain_npu_failure
    from ..devices.device import available_devices

    for device in available_devices():
        try:
            yield CheckResult("ok", "device", describe(device))
        except RuntimeError as error:
            yield CheckResult("fail", "device", f"{device}: {explain_npu_failure(error)}")
    device, error = resolved(context)
    if error:
        yield CheckResult("fail", "device", f"{error}. The CPU is checked instead")
    yield CheckResult("info", "device", f"used: {device}")


@cache
def resolved(context: CheckContext) -> tuple:
    """The device that was asked for and None, or the CPU and why the other cannot be had."""
    from ..devices.device import resolve_device
    from ..errors import DeviceError

    try:
        return resolve_device(context.device), None
    except DeviceError as error:
        return resolve_device("cpu"), str(error)


def device_of(context: CheckContext):
    return resolved(context)[0]


def describe(device) -> str:
    """One line: chip, family, abilities, memory, default dtype."""
    from ..devices.capabilities import capabilities
    from ..devices.memory import memory_of
    from ..loading.placement import gib

    can, memory = capabilities(device), memory_of(device)
    abilities = [word for word, has in (("bf16", can.bfloat16), ("fused", can.fused), ("graph", can.graph)) if has]
    room = f"{gib(memory.free)} free of {gib(memory.total)}"
    words = ", ".join([*abilities, room, str(can.dtype).removeprefix("torch.")])
    return f"{device}: {name_of(device)} ({can.family}), {words}"


def name_of(device) -> str:
    import torch

    if device.type in ("npu", "cuda"):
        return getattr(torch, device.type).get_device_name(device)
    return platform.processor() or platform.machine()


def check_placement(context: CheckContext) -> Iterator[CheckResult]:
    """Where the model's components would go."""
    from ..loading.memory_needs import CheckpointSizes
    from ..loading.placement import PlacementRequest, describe, fits, plan_placement

    if context.wanted:
        wanted = context.wanted()
    else:
        wanted = Wanted("the release", CheckpointSizes.of_release(), PlacementRequest())
    request = replace(wanted.request, device=device_of(context))
    placement, needs = plan_placement(wanted.sizes, request)
    text = f"{wanted.name}, {request.images}; {describe(placement, needs)}"
    if fits(placement, needs):
        yield CheckResult("ok", "placement", text)
    else:
        verdict = "generate refuses this" if request.refuses(placement) else "generate warns of this, and tries"
        yield CheckResult("warn", "placement", f"{text}\nthis does not fit: {verdict}")
    wanted.check(placement)


def check_kernels(context: CheckContext) -> Iterator[CheckResult]:
    """Each kernel on the device against the CPU in float32."""
    from .self_tests import kernel_errors

    for name, error, limit in kernel_errors(device_of(context)):
        status = "ok" if error <= limit else "fail"
        yield CheckResult(status, "kernel", f"{name}: largest error {error:.1e}, accepted {limit:.0e}")


def check_gelu(context: CheckContext) -> Iterator[CheckResult]:
    from .self_tests import gelu_mode

    mode = gelu_mode(device_of(context))
    note = "" if mode == "erf" else "; this package calls the exact form by another operator"
    yield CheckResult("info", "GELU", f"torch's F.gelu computes the {mode} form on {device_of(context)}{note}")


def check_graph(context: CheckContext) -> Iterator[CheckResult]:
    """A small planner's tokens by captured graph and by eager steps."""
    from .self_tests import graph_agrees

    reason, equal, replays = graph_agrees(device_of(context))
    if reason:
        yield CheckResult(
            "info" if device_of(context).type == "cpu" else "warn", "graph", f"planning without: {reason}"
        )
    else:
        yield CheckResult("ok" if equal else "fail", "graph", f"{replays} replays, tokens equal eager ones: {equal}")


def check_memory_errors(context: CheckContext) -> Iterator[CheckResult]:
    """Whether an impossible allocation is recognised as such, by which decoding in slices begins."""
    from .self_tests import recognises_out_of_memory

    if device_of(context).type != "cpu":
        known = recognises_out_of_memory(device_of(context))
        yield CheckResult("ok" if known else "fail", "out of memory", "recognised" if known else "not recognised")


def check_model_info(context: CheckContext) -> Iterator[CheckResult]:
    """The release's architecture at full size, built without memory."""
    from ..models import released as release

    counts = release.parameter_counts()
    for name, count in counts.items():
        yield CheckResult("info", "parameters", f"{name:24} {count:>14,}")
    yield CheckResult("info", "parameters", f"{'all':24} {sum(counts.values()):>14,}")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_torch,
    check_torch_npu,
    check_cann,
    check_environment,
    check_devices,
    check_placement,
    check_kernels,
    check_gelu,
    check_graph,
    check_memory_errors,
)
