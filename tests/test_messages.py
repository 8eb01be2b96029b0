"""Chinese for what nodes say: every error of the nodes has it, and its English is what the code says."""

import ast
import json
from pathlib import Path

from comfyui_glm_image.tools.workflows.builder import ROOT

WORDS = ROOT / "js" / "chinese_words.js"
HOLE = "{}"


def tables() -> tuple[dict, dict]:
    """VALUES and MESSAGES of the JavaScript file, whose tables are strict JSON."""
    _, values, messages = WORDS.read_text(encoding="utf-8").split("export const ")
    return tuple(json.loads(part[part.index("{") :]) for part in (values, messages))


def sentence(node: ast.expr) -> str | None:
    """A string of the code with a hole for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


def trees(*folders: str) -> list[ast.Module]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [ast.parse(Path(path).read_text(encoding="utf-8")) for path in files]


def test_every_error_of_the_nodes_is_chinese_too():
    raised = [
        sentence(node.exc.args[0])
        for tree in trees("nodes")
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    ]
    _, messages = tables()
    missing = sorted({text for text in raised if text} - messages.keys())
    assert not missing, f"add to {WORDS.name}: {missing}"


def test_the_english_of_every_message_stands_in_the_code():
    said = "\n".join(
        text for tree in trees("nodes", "pipeline") for node in ast.walk(tree) if (text := sentence(node)) is not None
    )
    _, messages = tables()
    for english in messages:
        for part in english.split(HOLE):
            assert part.strip(" .,;:") in said, english


def test_chinese_names_no_value_that_the_english_lacks():
    _, messages = tables()
    for english, chinese in messages.items():
        named = {int(part[0]) for part in chinese.split("{")[1:]}
        assert named <= set(range(english.count(HOLE))), english
