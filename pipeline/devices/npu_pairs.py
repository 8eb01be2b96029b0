"""Which torch_npu goes with which torch, told from installed files alone: importing a wrong pair can end the process.

The newer torch_npu of each torch and a CUDA build of torch register the same allocator setting, and the second to do so
aborts at `import torch`. PyPI's torch is a CUDA build for x86-64 and, by what it requires, for aarch64 since 2.11.0.
"""

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

CANN_OF = {  # torch_npu -> the CANN it was released with, where that is published
    "2.12.0": "9.1.0",
    "2.11.0": "9.1.0",
    "2.10.0.post4": "9.1.0",
    "2.9.0.post6": "9.1.0",
    "2.7.1.post8": "9.1.0",
    "2.9.0": "8.5.0",
    "2.8.0": "8.3.RC1",
}
STARTS_ANYWHERE = ("2.12.0", "2.12.0.post2")  # the newest torch and torch_npu that start with any build of torch
# torch_npu beside a CUDA build of each torch: 2.12.0.post3 was run, the others hold the same registration.
FIRST_TO_ABORT = {"2.10": "2.10.0.post7", "2.11": "2.11.0.post3", "2.12": "2.12.0.post3"}
ALL_ABORT = (2, 13)  # from here on every one does
MENDING = (
    f"pip install 'torch=={STARTS_ANYWHERE[0]}' 'torch-npu=={STARTS_ANYWHERE[1]}' (with torchvision and torchaudio on "
    "the same line if ComfyUI has them)"
)


@dataclass(frozen=True)
class Pair:
    """Versions as installed, None where one is not; `cuda` is the CUDA version that torch was built for."""

    torch: str | None
    torch_npu: str | None
    cuda: str | None = None

    @property
    def aborts(self) -> bool:
        """Whether importing torch_npu beside this torch ends the process."""
        if not (self.torch_npu and self.cuda):
            return False
        version, first = release(self.torch_npu), FIRST_TO_ABORT.get(minor(self.torch_npu))
        return version >= ALL_ABORT or bool(first and version >= release(first))

    @property
    def requirement(self) -> str:
        """What to ask pip for: the torch_npu made for this torch, of those that start beside its build."""
        kind = minor(self.torch or "")
        below = f",<{FIRST_TO_ABORT[kind]}" if self.cuda and kind in FIRST_TO_ABORT else ""
        return f"torch-npu=={kind}.*{below}"

    @property
    def command(self) -> str:
        """Installs that torch_npu; those before 2.12 ask pip for torch's CPU build by name, and take others as well."""
        alone = "--no-deps " if self.cuda and release(minor(self.torch or "")) < (2, 12) else ""
        return f"pip install {alone}{self.requirement!r}"

    @property
    def fault(self) -> str | None:
        """What is wrong with the pair and the command that mends it, or None."""
        if not (self.torch and self.torch_npu):
            return None
        if minor(self.torch) != minor(self.torch_npu):
            return (
                f"torch_npu {self.torch_npu} was made for torch {minor(self.torch_npu)} and torch {self.torch} is "
                f"installed; each torch_npu works with one torch only. Install the pair: "
                f"{self.command}, or 'torch=={minor(self.torch_npu)}.*'. Until then "
                "TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch usable on the CPU"
            )
        if self.aborts:
            return (
                f"torch_npu {self.torch_npu} cannot start beside torch {self.torch}, which is a build for CUDA "
                f"{self.cuda}: both register the same allocator setting, and 'import torch' aborts the process. "
                f"Install the newest pair that starts with every build: {MENDING}. To keep torch "
                f"{minor(self.torch)}, put its CPU build in place of this one (pytorch.org, Get Started: Pip, CPU)"
            )
        return None


def installed_pair() -> Pair:
    """What is installed, without importing it."""
    return Pair(version_of("torch"), version_of("torch_npu"), cuda_of_torch())


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cuda_of_torch() -> str | None:
    """The CUDA version in torch's version.py, None for a CPU build or where there is no torch."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.exists():
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def minor(version: str) -> str:
    """'2.13.0+cpu' -> '2.13'."""
    return ".".join(version.split("+")[0].split(".")[:2])


def release(version: str) -> tuple[int, ...]:
    """'2.12.0.post3' -> (2, 12, 0, 3), for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:4])
