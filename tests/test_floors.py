"""The floors of docs/architecture.md: a file imports only from its own folder and from floors below it."""

import ast
from pathlib import Path

import pytest
from comfyui_glm_image.tests.conftest import ROOT

FLOORS = (  # from the ground up
    ("pipeline/errors.py",),
    ("pipeline/files.py", "pipeline/progress.py", "pipeline/text.py"),
    ("pipeline/devices", "pipeline/geometry.py", "pipeline/images.py"),
    ("pipeline/models", "pipeline/plan.py", "pipeline/remote"),
    ("pipeline/loading",),
    ("pipeline/planning", "pipeline/denoising"),
    ("pipeline/layout",),
    ("pipeline/glm_image.py", "pipeline/__init__.py"),
    ("pipeline/benchmark", "pipeline/diagnostics", "training/plots.py"),
    ("nodes/comfyui", "pipeline/evaluation", "pipeline/device_check", "training/lora"),
    ("nodes", "cli", "training"),
    ("__init__.py", "__main__.py"),
)
FLOOR = {place: number for number, places in enumerate(FLOORS) for place in places}
FOLDERS = ("pipeline", "nodes", "cli", "training")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 400, 60, 7  # lines


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def place(path: Path) -> str:
    """The folder or file of the table that a file belongs to."""
    return next(str(part.as_posix()) for part in (path, *path.parents) if part.as_posix() in FLOOR)


def imported(path: Path) -> set[Path]:
    """Files of this package that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            for name in node.names:
                candidates = (base / name.name, base)
                files = (f for c in candidates for f in (c.with_suffix(".py"), c / "__init__.py"))
                found.update(next(([f] for f in files if (ROOT / f).is_file()), []))
    return found - {path}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_its_own_folder_and_from_floors_below(path):
    own = place(path)
    upward = [str(f) for f in imported(path) if place(f) != own and FLOOR[place(f)] >= FLOOR[own]]
    assert not upward


def test_no_file_imports_itself_by_a_way_round():
    graph, done = {path: imported(path) for path in FILES}, set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(str, (*way[way.index(path) :], path)))
        if path not in done:
            for target in graph.get(path, ()):
                visit(target, (*way, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def functions() -> list[tuple[str, int]]:
    """Name and lines of every function."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ((path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, kinds))
    return [(f"{path}:{node.name}", node.end_lineno - node.lineno + 1) for path, node in nodes]


def test_files_and_functions_can_be_read_in_one_go():
    lines = {str(path): (ROOT / path).read_text(encoding="utf-8").splitlines() for path in FILES}
    assert {name: len(text) for name, text in lines.items() if len(text) > LONGEST_FILE} == {}
    assert [name for name, text in lines.items() if any(line.startswith("# ----") for line in text)] == []
    sizes = functions()
    assert [name for name, size in sizes if size > LONGEST_FUNCTION] == []
    assert sorted(size for _, size in sizes)[len(sizes) // 2] <= MEDIAN_FUNCTION


def test_pipeline_shows_few_entries():
    entries = [p for p in (ROOT / "pipeline").iterdir() if p.name != "__pycache__"]
    assert len([p for p in entries if p.is_file()]) <= 10 and len([p for p in entries if p.is_dir()]) <= 11
