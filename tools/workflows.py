"""Workflow files in the form that ComfyUI's page saves -> the form its queue takes. Standard library only."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NOTES = ("Note", "MarkdownNote")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")


def workflow_files() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def to_api(workflow: dict, object_info: dict) -> dict:
    """A graph as saved by the page -> {node id: {class_type, inputs}}; notes and muted nodes are left out."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, object_info[node["type"]], links)}
        for node in workflow["nodes"]
        if node["type"] not in NOTES and node.get("mode", 0) == 0
    }


def _inputs(node: dict, info: dict, links: dict) -> dict:
    linked = {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry.get("link") is not None}
    widgets = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    values = iter(node.get("widgets_values", []))
    inputs = {}
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            options = declared[1] if len(declared) > 1 else {}
            if name in widgets or _is_widget(declared[0], options):
                inputs[name] = next(values)
                for _ in range(_extra_values(name, options)):
                    next(values, None)
            if name in linked:
                inputs[name] = linked[name]
    return inputs


def _is_widget(kind, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def _extra_values(name: str, options: dict) -> int:
    """Values the page keeps after a widget: what to do with a seed after each run, and an upload button."""
    seed = options.get("control_after_generate", name in SEEDS)
    return int(bool(seed)) + int(bool(options.get("image_upload")))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
