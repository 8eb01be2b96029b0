"""Environments of the real serving engines, on a CPU: `python tests/engines/setup.py`.

Makes `.engines/vllm-omni` and `.engines/sglang` (git-ignored) once: 4 and 8 GB, 5 to 15 minutes. Linux on x86-64 with
Python 3.11. Each has torch, the packages of `requirements/` as they were when the tests were written, and `startup.py`,
which stands in for what those engines have for devices only. Standard library only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = Path(os.environ.get("ENGINES_HOME") or ROOT / ".engines")
STAMP = "installed.txt"  # in an environment, written when it is whole


@dataclass(frozen=True)
class Environment:
    """`torch`: what comes with its own requirements, first. `plugin`: a package of ours to install."""

    name: str
    torch: tuple[str, ...]
    plugin: Path | None = None

    @property
    def folder(self) -> Path:
        return HOME / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.name}.txt"

    def wanted(self) -> str:
        ours = [HERE / "startup.py", *(sorted(self.plugin.rglob("*.py")) if self.plugin else ())]
        return "\n".join([*self.torch, *(path.read_text() for path in (self.requirements, *ours))])

    def is_ready(self) -> bool:
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text() == self.wanted()


VLLM_OMNI = Environment("vllm-omni", ("torch==2.13.0",), HERE / "vllm_omni_cpu")
SGLANG = Environment("sglang", ("torch==2.14.1", "torchvision==0.29.1"))


def make(environment: Environment) -> None:
    """Make it again when its packages changed or an attempt was cut short."""
    if environment.is_ready():
        return
    venv.create(environment.folder, with_pip=True, clear=True)
    pip(environment, "install", *environment.torch)
    pip(environment, "install", "--no-deps", "-r", str(environment.requirements))
    packages = site_packages(environment)
    if not imports(environment, "torchvision"):  # built for CUDA; startup.py names the operators in its library's stead
        for library in [*packages.glob("torchvision/_C*.so"), *packages.glob("torchaudio/lib/*.so")]:
            library.unlink()
    shutil.copy(HERE / "startup.py", packages / "engine_startup.py")
    (packages / "engine_startup.pth").write_text("import engine_startup\n")
    if environment.plugin:
        with tempfile.TemporaryDirectory() as folder:  # a build leaves files beside its source
            source = shutil.copytree(environment.plugin, Path(folder) / "plugin")
            pip(environment, "install", "--no-deps", "--no-build-isolation", str(source))
    (environment.folder / STAMP).write_text(environment.wanted())


def pip(environment: Environment, *arguments: str) -> None:
    command = [
        str(environment.python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        *arguments[:1],
        "-q",
        *arguments[1:],
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed:\n{result.stdout[-3000:]}")


def site_packages(environment: Environment) -> Path:
    probe = [str(environment.python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]
    return Path(subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip())


def imports(environment: Environment, module: str) -> bool:
    return subprocess.run([str(environment.python), "-c", f"import {module}"], capture_output=True).returncode == 0


def main() -> int:
    for environment in (VLLM_OMNI, SGLANG):
        make(environment)
        print(f"{environment.name}: {environment.folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
