"""Writing files so that a reader sees the old file or the whole new one, never half of it."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import FileError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, which serves as well
    fcntl = None

PREFIX, SUFFIX = ".glm-image-", ".partial"  # short, so that a name may have all the length the file system allows


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place on success and is removed on any failure.

    A symbolic link stays and what it names is replaced; the mode of an old file is kept. What a killed process left
    here is removed first. Raises `FileError` for what cannot be written, and for read-only files and devices, which
    a replacement would destroy.
    """
    path = Path(path)
    with errors_about(path):
        target, mode = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(target.parent)
        temporary, handle = _create(target.parent)
    try:
        with errors_about(path):
            yield temporary
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Raise `FileError` now if `replacing` could not write `path` later; its folder is made."""
    path = Path(path)
    with errors_about(path):
        target, _ = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _create(target.parent)
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """A full disk does not say which file it was about."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from None


def _target(path: Path) -> tuple[Path, int | None]:
    """The file to replace, behind all links, and its mode if there is one."""
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    except ValueError as error:  # a NUL, or a character that no name can have
        raise FileError(f"{path} is no file name: {error}") from None
    if stat.S_ISDIR(mode):
        raise FileError(f"{path} is a folder; give a file name")
    if not stat.S_ISREG(mode):
        raise FileError(f"{path} is a device or pipe, which cannot be replaced; give a file name")
    if not mode & 0o222:
        raise FileError(f"{path} is read-only; make it writable or give another name")
    return target, stat.S_IMODE(mode)


def _create(folder: Path) -> tuple[Path, int]:
    """A new empty file and its descriptor, whose lock says that somebody lives who writes it."""
    while True:
        temporary = folder / f"{PREFIX}{secrets.token_hex(4)}{SUFFIX}"
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if temporary.exists():  # else another process took it for left in between
            return temporary, handle
        os.close(handle)


def _remove_left(folder: Path) -> None:
    """Remove what killed processes left: temporaries that nobody holds a lock on."""
    for left in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process writes it, or has just removed it
            if not fcntl:
                left.unlink()
                continue
            handle = os.open(left, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(handle)
