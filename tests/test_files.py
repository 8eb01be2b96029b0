"""Writing files: whole or not at all, and nothing left behind, whatever stands in the way."""

import os
import stat
import subprocess
import sys
import time

import pytest
from comfyui_glm_image.pipeline.errors import FileError
from comfyui_glm_image.pipeline.files import PREFIX, SUFFIX, check_writable, replacing, write_text
from comfyui_glm_image.tests.conftest import ROOT

posix = pytest.mark.skipif(os.name == "nt", reason="links, modes and locks of POSIX")


def is_temporary(path):
    """Whether a file is one that is being written, or was when its process was killed."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_is_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    write_text(path, "two")
    assert path.read_text() == "two" and names(path.parent) == ["a.txt"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x"
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        write_text(tmp_path / ("n" * 300), "x")


@posix
def test_links_modes_and_what_must_not_be_replaced(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o400)
    for target, message in ((link, "read-only"), ("/dev/null", "a device or pipe"), (tmp_path, "a folder")):
        for write in (check_writable, lambda path: write_text(path, "x")):
            with pytest.raises(FileError, match=message):
                write(target)
    assert file.read_text() == "new" and stat.S_ISCHR(os.stat("/dev/null").st_mode)


@posix
def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "other").write_text("x")
    write_text(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["a\0b", "file/below", "\ud800"])
def test_a_path_that_cannot_be_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError) as error:
        write_text(tmp_path / name, "x")
    assert str(error.value).encode()
    assert not [path for path in tmp_path.iterdir() if is_temporary(path)]


KILLED = """
import sys; sys.path.insert(0, sys.argv[1]); import conftest
from comfyui_glm_image.pipeline.files import replacing
with replacing(sys.argv[2]) as temporary:
    temporary.write_bytes(bytes(1 << 20))
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_at_the_next_save_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "a.bin"
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(path)]
    killed, living = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for process in (killed, living):
        assert process.stdout.readline() == b"writing\n"
    killed.kill()
    killed.wait()
    write_text(tmp_path / "b.txt", "x")
    assert len([p for p in tmp_path.iterdir() if is_temporary(p)]) == 1
    living.communicate(timeout=60)
    assert names(tmp_path) == ["a.bin", "b.txt"]


def test_a_reader_sees_one_version_or_the_other(tmp_path):
    path, end = tmp_path / "a", time.monotonic() + 1
    write_text(path, "0" * 100_000)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(ROOT / "tests"), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"ready\n"
    seen = set()
    while time.monotonic() < end:
        seen.add(path.read_text())
    writer.communicate(timeout=60)
    assert all(len(text) == 100_000 and len(set(text)) == 1 for text in seen)


WRITER = """
import select, sys; sys.path.insert(0, sys.argv[1]); import conftest
from comfyui_glm_image.pipeline.files import write_text
print("ready", flush=True)
k = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    k += 1
    write_text(sys.argv[2], str(k % 10) * 100_000)
"""
