"""The house's floors: a file imports from its own folder and from floors below, and no imports run in a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter

from comfyui_glm_image.tests.conftest import ROOT

FLOORS = (  # from the ground up, see docs/architecture.md; rooms on one floor know nothing of each other
    ("pipeline/errors.py",),
    ("pipeline/files.py", "pipeline/progress.py"),
    ("pipeline/devices", "pipeline/geometry.py", "pipeline/text.py", "pipeline/images.py"),
    ("pipeline/models", "pipeline/plan.py", "pipeline/remote"),
    ("pipeline/loading",),
    ("pipeline/planning", "pipeline/denoising"),
    ("pipeline/layout",),
    ("pipeline/glm_image.py",),
    ("pipeline/benchmark", "pipeline/diagnostics", "pipeline/__init__.py"),
    ("pipeline/device_check", "pipeline/evaluation", "nodes/comfyui"),
    ("nodes", "cli", "training"),
    ("__init__.py", "__main__.py"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = {
    path.relative_to(ROOT).as_posix()
    for folder in ("pipeline", "nodes", "cli", "training")
    for path in (ROOT / folder).rglob("*.py")
} | {"__init__.py", "__main__.py"}


def room_of(file):
    """The longest entry of the table that a file lies in."""
    return max((room for room in FLOOR_OF if file == room or file.startswith(room + "/")), key=len)


def target(parts):
    """The file of a dotted name below the root, or nothing for a name inside a file."""
    path = "/".join(parts)
    return next((file for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if file in FILES), None)


@cache
def relative_imports(file):
    """Files that one imports relatively, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.split("/")[: -node.level]
            base = [*folder, *(node.module.split(".") if node.module else ())]
            found |= {target([*base, alias.name]) or target(base) for alias in node.names}
    return found - {None, file}


def test_no_file_imports_upwards_or_from_beside():
    climbing = [
        f"{file} imports {other}"
        for file in sorted(FILES)
        for other in sorted(relative_imports(file))
        if room_of(file) != room_of(other) and FLOOR_OF[room_of(file)] <= FLOOR_OF[room_of(other)]
    ]
    assert not climbing, "\n".join(climbing)


def test_no_imports_run_in_a_circle():
    try:
        TopologicalSorter({file: relative_imports(file) for file in FILES}).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_a_climb_would_be_seen():
    """The reader itself: a relative import deep in a function counts, and so does one of a module by its name."""
    assert "pipeline/glm_image.py" in relative_imports("pipeline/benchmark/run.py")
    assert FLOOR_OF[room_of("pipeline/models/vae.py")] < FLOOR_OF[room_of("pipeline/glm_image.py")]
    assert room_of("nodes/comfyui/model.py") == "nodes/comfyui" and room_of("nodes/plan.py") == "nodes"
