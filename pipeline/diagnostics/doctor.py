"""`glm-image doctor`: what is installed, what it can do, what is wrong and what to do about it.

Every check is a generator of findings. A check that fails in a way nobody foresaw becomes a finding itself, and the
others go on: a broken installation is explained, never a traceback. Nothing here imports torch before the checks run.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
PACKAGES = ("safetensors", "huggingface-hub", "tokenizers", "jinja2", "numpy", "pillow", "tqdm")
CANN_OF = {  # torch_npu -> the CANN it was released with; that of 2.13.0 is not published
    "2.12.0": "9.1.0",
    "2.11.0": "9.1.0",
    "2.10.0.post4": "9.1.0",
    "2.9.0.post6": "9.1.0",
    "2.7.1.post8": "9.1.0",
    "2.9.0": "8.5.0",
    "2.8.0": "8.3.RC1",
}
CANN_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
CANN_DEFAULT = "/usr/local/Ascend/ascend-toolkit/latest"
CANN_FILES = ("version.cfg", "*/ascend_toolkit_install.info", "ascend_toolkit_install.info", "*/version.info")
ENVIRONMENT = re.compile(r"^(ASCEND_|PYTORCH_NPU_|TASK_QUEUE_ENABLE$|ACLNN_|HCCL_)")


@dataclass(frozen=True)
class Finding:
    """`status`: ok, info (nothing to do), warn (works, not well) or fail (does not work)."""

    status: str
    topic: str
    text: str


@dataclass
class Patient:
    """What the checks know: the arguments, and the device once one was found."""

    args: argparse.Namespace
    device: object = None


Check = Callable[[Patient], Iterator[Finding]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--model-info", action="store_true", help="count the released model's parameters")
    parser.add_argument("--device", help="device to try (default: the best present)")
    parser.add_argument("--model", help="checkpoint folder for the placement (default: the release's sizes)")
    parser.add_argument("--width", type=int, default=1024, help="pixels, for the placement (default 1024)")
    parser.add_argument("--height", type=int, default=1024, help="pixels, for the placement (default 1024)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when nothing fails, else 1."""
    findings = examine(args)
    good = all(finding.status != "fail" for finding in findings)
    if args.json:
        print(json.dumps({"ok": good, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return 0 if good else 1
    for finding in findings:
        print(f"{finding.status:4}  {finding.topic:14}  " + finding.text.replace("\n", "\n" + " " * 22))
    print("\nnothing is wrong" if good else "\nsomething does not work; see the lines that begin with 'fail'")
    return 0 if good else 1


def examine(args: argparse.Namespace) -> list[Finding]:
    patient = Patient(args)
    checks = CHECKS + ((check_model_info,) if args.model_info else ())
    return [finding for check in checks for finding in guarded(check, patient)]


def guarded(check: Check, patient: Patient) -> Iterator[Finding]:
    topic = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        yield from check(patient)
    except Exception as error:  # any fault of an installation: to be told, and no reason to stop looking
        lines = str(error).strip().splitlines()
        yield Finding("fail", topic, f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


# ---- software ----


def check_python(patient: Patient) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def check_packages(patient: Patient) -> Iterator[Finding]:
    missing = [name for name in PACKAGES if version_of(name) is None]
    if missing:
        yield Finding("fail", "packages", f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    else:
        yield Finding("ok", "packages", ", ".join(f"{name} {version_of(name)}" for name in PACKAGES))


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_torch(patient: Patient) -> Iterator[Finding]:
    """torch itself, without the extensions that it loads by itself and that may break it."""
    if version_of("torch") is None and importlib.util.find_spec("torch") is None:
        yield Finding("fail", "torch", "not installed; pip install torch")
        return
    os.environ[AUTOLOAD] = "0"
    import torch

    yield Finding("ok", "torch", torch.__version__)


def check_torch_npu(patient: Patient) -> Iterator[Finding]:
    """Whether torch_npu is there, belongs to this torch, and can be imported."""
    npu, torch_version = version_of("torch_npu"), version_of("torch")
    if importlib.util.find_spec("torch_npu") is None:
        yield from _no_torch_npu()
        return
    if npu and torch_version and minor(npu) != minor(torch_version):
        yield Finding(
            "fail",
            "torch_npu",
            f"torch_npu {npu} was made for torch {minor(npu)} and torch {torch_version} is installed; each torch_npu "
            f"works with one torch only. Install the pair: pip install 'torch-npu=={minor(torch_version)}.*', or "
            f"'torch=={minor(npu)}.*'. Until then {AUTOLOAD}=0 keeps torch usable on the CPU",
        )
        return
    from ..devices.ascend import require_npu
    from ..errors import DeviceError

    try:
        require_npu()
    except DeviceError as error:
        yield Finding("fail", "torch_npu", f"{npu}: {error}")
        yield from _autoload_trap()
        return
    yield Finding("ok", "torch_npu", f"{npu}, made for torch {minor(npu or '')}")


def _no_torch_npu() -> Iterator[Finding]:
    if cann_home() is None:
        yield Finding("info", "torch_npu", "not installed; needed for Ascend NPUs only")
        return
    torch_version = version_of("torch") or ""
    yield Finding(
        "warn",
        "torch_npu",
        f"CANN is here and torch_npu is not; for NPUs: pip install 'torch-npu=={minor(torch_version)}.*'",
    )


def minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _autoload_trap() -> Iterator[Finding]:
    """torch imports torch_npu by itself, so one that fails takes torch with it; tried in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != AUTOLOAD}
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        yield Finding(
            "warn",
            "autoload",
            "in this environment plain 'import torch' fails, because torch loads torch_npu by itself; set "
            f"{AUTOLOAD}=0 for other programs (ComfyUI too). 'glm-image' sets it and works on the CPU: --device cpu",
        )


def check_cann(patient: Patient) -> Iterator[Finding]:
    home, npu = cann_home(), version_of("torch_npu")
    if home is None:
        if npu:
            yield Finding("warn", "CANN", f"not found in {' or '.join(CANN_HOMES)} nor in {CANN_DEFAULT}")
        return
    version, wanted = cann_version(home), CANN_OF.get(npu or "")
    text = f"{version or 'version not found'} in {home}"
    if version and wanted and not version.startswith(wanted.split(".RC")[0]):
        yield Finding("warn", "CANN", f"{text}; torch_npu {npu} was released with CANN {wanted}")
    else:
        yield Finding("ok", "CANN", text + (f", the pair of torch_npu {npu}" if version and wanted else ""))


def cann_home() -> Path | None:
    paths = [*filter(None, map(os.environ.get, CANN_HOMES)), CANN_DEFAULT]
    return next((Path(path) for path in paths if Path(path).is_dir()), None)


def cann_version(home: Path) -> str | None:
    """The number in CANN's own version files."""
    for pattern in CANN_FILES:
        for path in sorted(home.glob(pattern)):
            found = re.search(r"(?i)version\w*\s*=\s*\[?(\d+\.[\w.]+)", path.read_text(errors="replace"))
            if found:
                return found[1]
    return None


def check_environment(patient: Patient) -> Iterator[Finding]:
    found = {name: value for name, value in sorted(os.environ.items()) if ENVIRONMENT.match(name)}
    if found:
        yield Finding("info", "environment", "\n".join(f"{name}={value}" for name, value in found.items()))


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_torch,
    check_torch_npu,
    check_cann,
    check_environment,
)


# ---- devices ----


def check_devices(patient: Patient) -> Iterator[Finding]:
    """Every device with what it can do; then the one that will be used."""
    from ..devices.ascend import explain_npu_failure
    from ..devices.device import available_devices, resolve_device
    from ..errors import DeviceError

    for device in available_devices():
        try:
            yield Finding("ok", "device", describe(device))
        except RuntimeError as error:
            yield Finding("fail", "device", f"{device}: {explain_npu_failure(error)}")
    try:
        patient.device = resolve_device(patient.args.device)
    except DeviceError as error:
        yield Finding("fail", "device", f"{error}. The CPU is checked instead")
        patient.device = resolve_device("cpu")
    yield Finding("info", "device", f"used: {patient.device}")


def describe(device) -> str:
    """One line: chip, family, abilities, memory, default dtype."""
    from ..devices.capabilities import capabilities
    from ..devices.memory import memory_of

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


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def check_placement(patient: Patient) -> Iterator[Finding]:
    """Where the model's components would go."""
    from ..loading.memory_needs import CheckpointSizes
    from ..loading.placement import PlacementRequest, describe, fits, plan_placement

    args = patient.args
    model = Path(args.model) if args.model else CheckpointSizes.of_release()
    request = PlacementRequest(patient.device, height=args.height, width=args.width)
    placement, needs = plan_placement(model, request)
    status = "ok" if fits(placement, needs) else "warn"
    text = f"{args.model or 'the release'} at {args.width}x{args.height} px; {describe(placement, needs)}"
    yield Finding(status, "placement", text + ("" if status == "ok" else "\nthis does not fit"))


def check_kernels(patient: Patient) -> Iterator[Finding]:
    """Each kernel on the device against the CPU in float32."""
    from .self_tests import kernel_errors

    for name, error, limit in kernel_errors(patient.device):
        status = "ok" if error <= limit else "fail"
        yield Finding(status, "kernel", f"{name}: largest error {error:.1e}, accepted {limit:.0e}")


def check_gelu(patient: Patient) -> Iterator[Finding]:
    from .self_tests import gelu_mode

    mode = gelu_mode(patient.device)
    note = "" if mode == "erf" else "; this package calls the exact form by another operator"
    yield Finding("info", "GELU", f"torch's F.gelu computes the {mode} form on {patient.device}{note}")


def check_graph(patient: Patient) -> Iterator[Finding]:
    """A small planner's tokens by captured graph and by eager steps."""
    from .self_tests import graph_agrees

    reason, equal, replays = graph_agrees(patient.device)
    if reason:
        yield Finding("info" if patient.device.type == "cpu" else "warn", "graph", f"planning without: {reason}")
    else:
        yield Finding("ok" if equal else "fail", "graph", f"{replays} replays, tokens equal eager ones: {equal}")


def check_memory_errors(patient: Patient) -> Iterator[Finding]:
    """Whether an impossible allocation is recognised as such, by which drawing in strips begins."""
    from .self_tests import recognises_out_of_memory

    if patient.device.type != "cpu":
        known = recognises_out_of_memory(patient.device)
        yield Finding("ok" if known else "fail", "out of memory", "recognised" if known else "not recognised")


def check_model_info(patient: Patient) -> Iterator[Finding]:
    """The release's architecture at full size, built without memory."""
    from ..models import released as release

    counts = release.parameter_counts()
    for name, count in counts.items():
        yield Finding("info", "parameters", f"{name:24} {count:>14,}")
    yield Finding("info", "parameters", f"{'all':24} {sum(counts.values()):>14,}")


CHECKS += (check_devices, check_placement, check_kernels, check_gelu, check_graph, check_memory_errors)
