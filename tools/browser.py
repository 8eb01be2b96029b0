"""Chromium and playwright-core for the browser tests: `python tools/browser.py` prints where they are.

Chromium is the machine's (CHROMIUM names another), installed from Debian's packages where that is possible;
playwright-core comes from npm into `.comfyui/browser` (PLAYWRIGHT_CORE names another). Standard library only.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".comfyui" / "browser"
PLAYWRIGHT = "playwright-core@1.64.1"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def settings() -> dict[str, str]:
    """Environment variables that the browser drivers read; raises `SystemExit` with what is missing."""
    return {"CHROMIUM": chromium(), "PLAYWRIGHT_CORE": playwright()}


def is_ready() -> bool:
    """Whether `settings` has nothing to install."""
    return bool(os.environ.get("CHROMIUM") or _on_path()) and Path(_package()).is_dir() and bool(shutil.which("node"))


def _package() -> str:
    return os.environ.get("PLAYWRIGHT_CORE") or str(FOLDER / "node_modules" / "playwright-core")


def chromium() -> str:
    if path := os.environ.get("CHROMIUM"):
        return path
    if not _on_path() and shutil.which("apt-get") and os.geteuid() == 0:
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core")
    path = _on_path()
    if not path:
        raise SystemExit("no Chromium; install it (Debian: apt-get install chromium) or set CHROMIUM to its path")
    return path


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def playwright() -> str:
    package = _package()
    if not Path(package).is_dir():
        if not shutil.which("npm"):
            raise SystemExit("no npm to install playwright-core with; install Node.js or set PLAYWRIGHT_CORE")
        FOLDER.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--prefix", str(FOLDER), "--no-save", "--no-audit", "--no-fund", PLAYWRIGHT)
    return package


def run(*command: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}")


if __name__ == "__main__":
    for name, value in settings().items():
        print(f"{name}={value}")
    sys.exit()
