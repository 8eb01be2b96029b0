"""The page's texts in every language: what ComfyUI's translator cannot show would break the node that has it."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "locales"
COMMANDS = set("@{}|$")  # vue-i18n takes them for links, values and plurals; a node with a stray @ is not drawn at all


def messages(tree: dict, path: str = "") -> dict[str, str]:
    found = {}
    for name, value in tree.items():
        found |= messages(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value}
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.json")), ids=lambda file: str(file.relative_to(FOLDER)))
def test_messages_hold_no_sign_that_the_translator_takes_as_a_command(file):
    texts = messages(json.loads(file.read_text(encoding="utf-8")))
    assert texts and [name for name, text in texts.items() if COMMANDS & set(text)] == []
