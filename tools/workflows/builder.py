"""Workflow files: short graphs into the form that the page saves, and that form into what ComfyUI's queue takes.

`Graph.add` takes a node's inputs by name: an `Output` is a link, everything else a widget's value; what is not given
keeps the node's default. Nodes stand in columns, each with the room that it takes after a run (space.py).
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from . import space

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
THUMBNAIL = 384  # px of the longer side of a workflow's image
NOTES = ("Note", "MarkdownNote")
PACK = "comfyui-glm-image"
NAMESPACE = uuid.UUID("5b4e2d0a-5c7a-4a53-9a35-2f5a8a6e7c11")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "GLM_IMAGE_LAYOUT_EDITOR")
SEEDS = ("seed", "noise_seed")


@dataclass(frozen=True)
class Output:
    node: int
    slot: int


class Node:
    """One node of a graph; `node[i]` is its output."""

    def __init__(self, number: int):
        self.number = number

    def __getitem__(self, slot: int) -> Output:
        return Output(self.number, slot)


class Graph:
    """A workflow in the form that the page saves, built against the nodes of a running ComfyUI."""

    def __init__(self, name: str, notes: dict[str, str], object_info: dict, versions: dict[str, str]):
        self.name, self.info, self.versions = name, object_info, versions
        self.nodes, self.links, self.columns = [], [], {}
        for place, (title, text) in enumerate(notes.items()):
            self._note(title, text, space.LEFT + place * (space.NOTE_WIDTH + space.GAP))

    def _note(self, title: str, text: str, x: int) -> None:
        height = space.note_height(text)
        node = self._node("MarkdownNote", (space.NOTE_WIDTH, height), [], [], [text], {})
        node |= {"pos": [x, -height - space.GAP], "title": title, "color": "#432", "bgcolor": "#653"}

    def add(self, kind: str, column: int, title: str = "", **given) -> Node:
        """A node below those that its column has already."""
        info = self.info[kind]
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        unknown = given.keys() - declared.keys()
        assert not unknown, f"{self.name}: {kind} has no input {unknown}"
        inputs, values = _inputs_of(info, declared, given)
        number = len(self.nodes) + 1
        for slot, entry in enumerate(inputs):
            source = given.get(entry["name"])
            entry["link"] = self._link(source, number, slot, entry["type"]) if isinstance(source, Output) else None
        outputs = [
            {"localized_name": name, "name": name, "type": kind_of_output, "links": []}
            for name, kind_of_output in zip(info["output_name"], info["output"])
        ]
        properties = {"Node name for S&R": kind, **self._origin(kind)}
        node = self._node(kind, space.needed(kind, info, title), inputs, outputs, values, properties)
        self.columns.setdefault(column, []).append(node)
        if title:
            node["title"] = title
        return Node(number)

    def _origin(self, kind: str) -> dict:
        pack = PACK if "GLMImage" in kind else "comfy-core"
        return {"cnr_id": pack, "ver": self.versions[pack]}

    def _node(self, kind, size, inputs, outputs, values, properties) -> dict:
        number = len(self.nodes) + 1
        node = {"id": number, "type": kind, "pos": [0, 0], "size": list(size), "flags": {}, "order": number - 1}
        node |= {"mode": 0, "inputs": inputs, "outputs": outputs, "properties": properties, "widgets_values": values}
        self.nodes.append(node)
        return node

    def _link(self, source: Output, node: int, slot: int, kind: str) -> int:
        number = len(self.links) + 1
        self.nodes[source.node - 1]["outputs"][source.slot]["links"].append(number)
        self.links.append([number, source.node, source.slot, node, slot, kind])
        return number

    def to_json(self) -> dict:
        space.arrange([self.columns[key] for key in sorted(self.columns)])
        return {
            "id": str(uuid.uuid5(NAMESPACE, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 480]}},
            "version": 0.4,
        }


def _inputs_of(info: dict, declared: dict, given: dict) -> tuple[list[dict], list]:
    """A node's inputs as the page writes them, sockets first, and the values of its widgets."""
    sockets, widgets, values = [], [], []
    for name, (kind, *more) in declared.items():
        options = more[0] if more else {}
        entry = {"localized_name": name, "name": name, "type": "COMBO" if isinstance(kind, list) else kind}
        if is_widget(kind, options):
            widgets.append(entry | {"widget": {"name": name}})
            values += [_value(given.get(name), kind, options), *_extra_values(name, options)]
        else:
            sockets.append(entry | ({"shape": 7} if name in info["input"].get("optional", {}) else {}))
    return sockets + widgets, values


def _value(given, kind, options: dict):
    """What a widget shows: the value given, else its default."""
    if given is not None and not isinstance(given, Output):
        return given
    default = options.get("default", kind[0] if isinstance(kind, list) else None)
    return options["options"][0] if default is None and options.get("options") else default


def is_widget(kind, options: dict) -> bool:
    """Whether the page shows an input as a field; one of several types may name the field's."""
    return (isinstance(kind, list) or options.get("widgetType", kind) in WIDGETS) and not options.get("forceInput")


def _extra_values(name: str, options: dict) -> list:
    """Values the page keeps after a widget: what to do with a seed after each run, and an upload button."""
    seed = ["fixed"] if options.get("control_after_generate", name in SEEDS) else []
    return seed + (["image"] if options.get("image_upload") else [])


def workflow_files(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("*.json"))


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
    values = iter(node.get("widgets_values") or [])
    inputs = {}
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            options = declared[1] if len(declared) > 1 else {}
            if name in widgets or is_widget(declared[0], options):
                inputs[name] = next(values, options.get("default"))
                for _ in _extra_values(name, options):
                    next(values, None)
            if name in linked:
                inputs[name] = linked[name]
    return inputs


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
