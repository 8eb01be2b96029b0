"""The English locale, out of the nodes themselves: `python tools/locales.py URL` asks a running ComfyUI with the pack.

Chinese (`locales/zh`) is written by hand; the tests compare its keys with these.
"""

import json
import sys
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "locales"
OURS = "GLMImage"  # part of every node id of this pack


def node_texts(object_info: dict) -> dict:
    """What the page can show in another language, as `nodeDefs.json` holds it."""
    return {name: _texts(info) for name, info in sorted(object_info.items()) if OURS in name}


def _texts(info: dict) -> dict:
    inputs = {}
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            inputs[name] = {"name": name}
            if len(declared) > 1 and declared[1].get("tooltip"):
                inputs[name]["tooltip"] = declared[1]["tooltip"]
    outputs = {str(i): {"name": name} for i, name in enumerate(info["output_name"])}
    texts = {"display_name": info["display_name"], "description": info["description"], "inputs": inputs}
    return texts | ({"outputs": outputs} if outputs else {})


def keys(tree: dict, path: str = "") -> set[str]:
    """`node.inputs.name.tooltip` of every text."""
    found = set()
    for name, value in tree.items():
        found |= keys(value, f"{path}{name}.") if isinstance(value, dict) else {path + name}
    return found


def read(language: str, name: str) -> dict:
    return json.loads((FOLDER / language / f"{name}.json").read_text(encoding="utf-8"))


def main(url: str) -> None:
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        texts = node_texts(json.load(answer))
    text = json.dumps(texts, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
