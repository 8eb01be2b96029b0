"""`make test-lowest`, `make test-highest`: tests with the lowest or the newest version of every dependency.

The lowest run on the lowest Python that pyproject.toml states, the newest on the newest Python here; each in an
environment of its own, .venv-lowest or .venv-highest. Tells what was installed and runs pytest, whose arguments may
follow: `python tests/versions/run.py lowest tests/planning -x`. `part` in their place is what CI runs: the suites that
call the libraries in most ways, without training, comparisons and whole images. Where the Python is missing, or disk or
network does not suffice, one line says so and nothing fails. Standard library only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("ocr", "plots", "gguf")
TESTERS = ("pytest",)  # of the extra `test`; the reference libraries there want newer versions than the lowest
ROOM = 5 << 30  # bytes
SUITES = (
    "tests/cli", "tests/denoising", "tests/device_check", "tests/devices", "tests/diagnostics", "tests/layout",
    "tests/loading", "tests/models", "tests/planning", "tests/remote/test_remote.py", "tests/remote/test_addresses.py",
    "tests/robustness", "tests/test_errors.py", "tests/test_files.py", "tests/test_geometry.py",
    "tests/test_glm_image.py", "tests/test_images.py", "tests/test_package.py", "tests/test_plan.py",
    "tests/test_text.py",
)  # fmt: skip
PART = (
    "tests/cli/test_options.py", "tests/denoising", "tests/devices", "tests/diagnostics", "tests/layout",
    "tests/loading", "tests/planning", "tests/remote/test_addresses.py", "tests/robustness",
    "tests/test_errors.py", "tests/test_files.py", "tests/test_images.py", "tests/test_package.py",
    "tests/test_plan.py", "tests/test_text.py",
)  # fmt: skip
REQUIRES = "import importlib.metadata, json; print(json.dumps(importlib.metadata.requires('torch')))"
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
LIBRARIES = 20  # of CUDA, more than any torch names


class Skipped(Exception):
    """Why nothing is run here, which is no failure."""


def requirements(project: str) -> dict[str, str]:
    """Name -> lowest version of everything that the product needs, its extras and pytest."""
    lists = re.findall(r"^(\w+) = \[(.*?)\](?=\s*(?:#.*)?$)", project, re.DOTALL | re.MULTILINE)
    wanted = {name: re.findall(r'"([\w-]+)>=([\d.]+)', text) for name, text in lists}
    found = dict(wanted["dependencies"] + [pair for extra in EXTRAS for pair in wanted[extra]])
    return found | {name: version for name, version in wanted["test"] if name in TESTERS}


def lowest_python(project: str) -> str:
    """The interpreter of the lowest minor version that is stated, from PATH or from pyenv."""
    version = re.search(r'requires-python = ">=(3\.\d+)"', project)[1]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    for python in filter(None, candidates):
        asked = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True)
        if asked.returncode == 0:
            return str(python)
    raise Skipped(f"the lowest versions need Python {version}, which is not installed")


def highest_python(project: str) -> str:
    """The newest interpreter of PATH and of pyenv that has wheels of torch by experience: below 3.14."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in range(13, 9, -1):
        name = f"python3.{minor}"
        for python in filter(None, [shutil.which(name), *sorted(pyenv.glob(f"versions/3.{minor}.*/bin/{name}"))]):
            if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
                return str(python)
    raise Skipped("the newest versions need a Python from 3.10 to 3.13, which is not installed")


def install(python: str, folder: Path, wanted: list[str]) -> Path:
    """An environment with `wanted`, torch first, and this project -> its interpreter; made once."""
    inside, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == "\n".join(wanted):
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    if shutil.disk_usage(ROOT).free < ROOM:
        raise Skipped(f"{folder.name} needs {ROOM >> 30} GiB of disk, and less is free")
    subprocess.run([python, "-m", "venv", folder], check=True)
    torch, *others = wanted
    pip(inside, "--no-deps", torch)
    pip(inside, *others, *without_cuda(said_by(inside, REQUIRES)))
    pip(inside, "--no-deps", "-e", ".")
    lend_libraries(inside)
    stamp.write_text("\n".join(wanted))
    return inside


def pip(python: Path, *arguments: str) -> None:
    """Install; what cannot be had as pyproject.toml states it is an error, and any other trouble a reason to skip."""
    command = [python, "-m", "pip", "install", "-q", "--upgrade", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        if any(word in done.stdout for word in ("No matching distribution", "conflicting dependencies")):
            raise SystemExit("pyproject.toml states what cannot be installed:\n" + "\n".join(said))
        raise Skipped(f"{' '.join(arguments)[:100]} could not be installed: {said[-1][:200]}")


def without_cuda(requirements: list[str]) -> list[str]:
    """What torch needs on a CPU. PyPI's build for x86-64 Linux asks for 2.5 GB of CUDA and calls one library of it."""
    cuda = ("nvidia-", "cuda-", "triton")
    return [line for line in requirements if not line.startswith(cuda) or "cuda-runtime" in line]


def lend_libraries(python: Path) -> None:
    """Empty libraries in place of CUDA's, which torch names and no test calls; functions are looked up when called."""
    packages = Path(said_by(python, "import sysconfig, json; print(json.dumps(sysconfig.get_path('purelib')))"))
    (packages / "lazy_libraries.pth").write_text("import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n")
    for _ in range(LIBRARIES):
        tried = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
        missing = re.search(r"(lib[\w.-]+\.so[.\d]*): cannot open shared object", tried.stderr)
        if not missing:
            break
        if not shutil.which("gcc"):
            raise Skipped(f"torch wants {missing[1]}, and without gcc no library can stand in for it")
        library = packages / "torch" / "lib" / missing[1]
        subprocess.run(
            ["gcc", "-shared", f"-Wl,-soname,{missing[1]}", "-o", library, "-x", "c", "/dev/null"], check=True
        )
    if tried.returncode:
        raise SystemExit(f"torch cannot be imported:\n{tried.stderr[-1000:]}")


def said_by(python: Path, code: str, *arguments: str):
    """JSON that a line of code prints."""
    asked = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


def untrue(stated: dict[str, str], found: dict[str, str]) -> list[str]:
    """Packages that are not of the version stated; 8 and 8.0.0 are one version, 2.6.0+cu124 is 2.6."""

    def parts(version: str) -> list[str]:
        return re.sub(r"(\.0)+$", "", version.split("+")[0]).split(".")

    return [f"{name} {found[name]}" for name in stated if parts(found[name]) != parts(stated[name])]


def environment(edge: str) -> Path:
    """The interpreter to run tests with; its versions are printed, and the lowest compared with what is stated."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = requirements(project)
    choose = lowest_python if edge == "lowest" else highest_python
    wanted = [f"{name}=={version}" for name, version in stated.items()] if edge == "lowest" else list(stated)
    python = install(choose(project), ROOT / f".venv-{edge}", wanted)
    found = said_by(python, VERSIONS, *stated)
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"the {edge} versions: {version}, " + ", ".join(f"{name} {found[name]}" for name in stated), flush=True)
    if edge == "lowest" and (other := untrue(stated, found)):
        raise SystemExit(f"not the versions that pyproject.toml states: {', '.join(other)}")
    return python


def main() -> int:
    edge, *chosen = sys.argv[1:] or [""]
    if edge not in ("lowest", "highest"):
        raise SystemExit("say which: lowest or highest")
    try:
        python = environment(edge)
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    command = [python, "-m", "pytest", "-q", "-rs", *(PART if chosen == ["part"] else chosen or SUITES)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
