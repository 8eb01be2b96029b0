"""What is installed: read from files, then tried in processes of their own, because a wrong pair aborts its process."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..devices.npu_pairs import CANN_OF, Pair, cuda_of_torch, minor, version_of
from .findings import CheckContext, CheckResult

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
PACKAGES = ("safetensors", "huggingface-hub", "tokenizers", "jinja2", "numpy", "pillow", "tqdm")
CANN_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
CANN_DEFAULT = "/usr/local/Ascend/ascend-toolkit/latest"
CANN_FILES = ("version.cfg", "*/ascend_toolkit_install.info", "ascend_toolkit_install.info", "*/version.info")
ENVIRONMENT = re.compile(r"^(ASCEND_|PYTORCH_NPU_|TASK_QUEUE_ENABLE$|ACLNN_|HCCL_)")
SECONDS = 300  # for an import in a process of its own


def check_python(context: CheckContext) -> Iterator[CheckResult]:
    yield CheckResult("ok", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def check_packages(context: CheckContext) -> Iterator[CheckResult]:
    missing = [name for name in PACKAGES if version_of(name) is None]
    if missing:
        yield CheckResult("fail", "packages", f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    else:
        yield CheckResult("ok", "packages", ", ".join(f"{name} {version_of(name)}" for name in PACKAGES))


def check_torch(context: CheckContext) -> Iterator[CheckResult]:
    """torch itself, without the extensions that it loads by itself and that may break it."""
    if version_of("torch") is None and importlib.util.find_spec("torch") is None:
        yield CheckResult("fail", "torch", "not installed; pip install torch")
        return
    os.environ[AUTOLOAD] = "0"
    cuda = cuda_of_torch()
    text = f"{version_of('torch')}, a build for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    if error := import_error("torch", AUTOLOAD):
        yield CheckResult("fail", "torch", f"{text}, cannot be imported: {error}")
    else:
        yield CheckResult("ok", "torch", text)


def check_torch_npu(context: CheckContext) -> Iterator[CheckResult]:
    """Whether torch_npu is there, belongs to this torch, and can be imported."""
    pair = Pair(version_of("torch"), version_of("torch_npu"), cuda_of_torch())
    if importlib.util.find_spec("torch_npu") is None:
        yield from _no_torch_npu(pair)
        return
    if pair.fault:
        yield CheckResult("fail", "torch_npu", pair.fault)
        return
    if error := import_error("torch_npu", AUTOLOAD):
        yield CheckResult("fail", "torch_npu", f"{pair.torch_npu}: {_explained(error)}")
        yield from _autoload_trap()
        return
    yield from _sees_devices(pair)


def _no_torch_npu(pair: Pair) -> Iterator[CheckResult]:
    if cann_home() is None:
        yield CheckResult("info", "torch_npu", "not installed; needed for Ascend NPUs only")
        return
    likely = Pair(pair.torch, pair.torch, pair.cuda)
    advice = likely.fault if likely.aborts else f"for NPUs: {pair.command}"
    yield CheckResult("warn", "torch_npu", f"CANN is here and torch_npu is not; {advice}")


def _sees_devices(pair: Pair) -> Iterator[CheckResult]:
    from ..devices.ascend import require_npu
    from ..errors import DeviceError

    try:
        require_npu()
    except DeviceError as error:
        yield CheckResult("fail", "torch_npu", f"{pair.torch_npu}: {error}")
        return
    yield CheckResult("ok", "torch_npu", f"{pair.torch_npu}, made for torch {minor(pair.torch_npu or '')}")


def import_error(module: str, *zero: str) -> str | None:
    """How the import fails in a process of its own, whose environment has these variables at 0; None if it works."""
    environment = {name: value for name, value in os.environ.items() if name != AUTOLOAD} | dict.fromkeys(zero, "0")
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith((" ", "frame"))]
    if done.returncode > 0:
        return said[-1] if said else f"exit code {done.returncode}"
    cause = next((line for line in said if "Error" in line or "what()" in line), said[-1] if said else "no message")
    return f"the process was aborted by signal {-done.returncode} ({cause[:200]})"


def _explained(error: str) -> str:
    """An error text of the import, with what to do."""
    if "aborted by signal" in error:
        return (
            f"'import torch' ends the process: {error}. {AUTOLOAD}=0 keeps torch usable on the CPU; docs/ascend.md "
            "lists pairs of torch and torch_npu that start"
        )
    from ..devices.ascend import explain_npu_message

    return explain_npu_message(error)


def _autoload_trap() -> Iterator[CheckResult]:
    """torch imports torch_npu by itself, so one that fails takes torch with it."""
    if import_error("torch"):
        yield CheckResult(
            "warn",
            "autoload",
            "in this environment plain 'import torch' fails, because torch loads torch_npu by itself; set "
            f"{AUTOLOAD}=0 for other programs (ComfyUI too). 'glm-image' sets it and works on the CPU: --device cpu",
        )


def check_cann(context: CheckContext) -> Iterator[CheckResult]:
    home, npu = cann_home(), version_of("torch_npu")
    if home is None:
        if npu:
            yield CheckResult("warn", "CANN", f"not found in {' or '.join(CANN_HOMES)} nor in {CANN_DEFAULT}")
        return
    version, wanted = cann_version(home), CANN_OF.get(npu or "")
    text = f"{version or 'version not found'} in {home}"
    if version and wanted and not version.startswith(wanted.split(".RC")[0]):
        yield CheckResult("warn", "CANN", f"{text}; torch_npu {npu} was released with CANN {wanted}")
    else:
        yield CheckResult("ok", "CANN", text + (f", the pair of torch_npu {npu}" if version and wanted else ""))


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


def check_environment(context: CheckContext) -> Iterator[CheckResult]:
    found = {name: value for name, value in sorted(os.environ.items()) if ENVIRONMENT.match(name)}
    if found:
        yield CheckResult("info", "environment", "\n".join(f"{name}={value}" for name, value in found.items()))
