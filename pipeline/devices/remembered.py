"""What was measured on a device once and decides later runs on it, in one JSON file of the user's cache folder."""

import json
import os
from pathlib import Path

import torch

from ..errors import FileError
from ..files import write_text


def remembered(device: torch.device, what: str) -> bool | None:
    """What `remember` wrote for devices of this name, or None; a file that cannot be read says nothing."""
    return _read().get(name_of(device), {}).get(what)


def remember(device: torch.device, what: str, value: bool) -> Path | None:
    """Write it down for every device of this name; the file's path, None where it cannot be written."""
    known = _read()
    known.setdefault(name_of(device), {})[what] = value
    try:
        write_text(_file(), json.dumps(known, indent=2))
    except (FileError, OSError):
        return None
    return _file()


def name_of(device: torch.device) -> str:
    """The vendor's name where there is one, such as `Ascend910B3`."""
    module = getattr(torch, device.type, None)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "comfyui-glm-image" / "devices.json"


def _read() -> dict:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
