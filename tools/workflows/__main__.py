"""The example workflows: from short graphs to files, from files to what ComfyUI's queue takes, and their pictures.

    python tools/workflows.py build URL         write workflows/*.json against the nodes of a running ComfyUI
    python tools/workflows.py thumbnails URL    run every workflow there and keep its picture beside it

`thumbnails` needs pillow; the rest only the standard library.
"""

import argparse
import io
import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a script, and a module of the tests

import workflow_graphs
from workflow_graphs import SEEDS, is_widget

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
NOTES = ("Note", "MarkdownNote")
RELEASE_ONLY = ("glm_image_full_model",)  # needs 35 GB of weights
THUMBNAIL = 384  # px of the longer side
QUALITY = 88


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
    values = iter(node.get("widgets_values") or [])
    inputs = {}
    for section in ("required", "optional"):
        for name, declared in info["input"].get(section, {}).items():
            options = declared[1] if len(declared) > 1 else {}
            if name in widgets or is_widget(declared[0], options):
                inputs[name] = next(values, options.get("default"))
                for _ in range(_extra_values(name, options)):
                    next(values, None)
            if name in linked:
                inputs[name] = linked[name]
    return inputs


def _extra_values(name: str, options: dict) -> int:
    """Values the page keeps after a widget: what to do with a seed after each run, and an upload button."""
    seed = options.get("control_after_generate", name in SEEDS)
    return int(bool(seed)) + int(bool(options.get("image_upload")))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# Writing them -------------------------------------------------------------------------------------------------------


def build(url: str) -> None:
    pack = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    core = get(url, "/system_stats")["system"]["comfyui_version"]
    versions = {workflow_graphs.PACK: pack, "comfy-core": core}
    for name, workflow in workflow_graphs.build(get(url, "/object_info"), versions).items():
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


# Running them -------------------------------------------------------------------------------------------------------


def thumbnails(url: str, only: list[str]) -> None:
    object_info = get(url, "/object_info")
    for path in workflow_files():
        if path.stem in RELEASE_ONLY or (only and path.stem not in only):
            continue
        started = time.monotonic()
        pictures = run(url, to_api(load(path), object_info))
        if not pictures:
            print(f"{path.stem}: saved no picture", flush=True)
            continue
        sheet(pictures).save(path.with_suffix(".jpg"), quality=QUALITY)
        print(f"{path.stem}: {len(pictures)} pictures, {time.monotonic() - started:.0f} s", flush=True)


def run(url: str, prompt: dict) -> list:
    """Queue a graph, wait for it and fetch what it saved, as pillow pictures."""
    from PIL import Image

    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(url + "/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        number = json.load(answer)["prompt_id"]
    while not (entry := get(url, f"/history/{number}").get(number)):
        time.sleep(0.5)
    if entry["status"]["status_str"] != "success":
        raise SystemExit(f"the graph failed: {entry['status']['messages'][-1][1].get('exception_message')}")
    saved = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    saved = [image for image in saved if image["type"] == "output"]
    return [Image.open(io.BytesIO(fetch(url, "/view?" + urlencode(image)))).convert("RGB") for image in saved]


def sheet(pictures: list):
    """One picture, or up to four in two columns; small ones are enlarged without blur."""
    from PIL import Image

    pictures = pictures[:4]
    width, height = pictures[0].size
    columns = 1 if len(pictures) == 1 else 2
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * width, i // columns * height))
    scale = THUMBNAIL / max(whole.size)
    size = tuple(max(1, round(side * scale)) for side in whole.size)
    return whole.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def get(url: str, path: str):
    return json.loads(fetch(url, path))


def fetch(url: str, path: str) -> bytes:
    with urllib.request.urlopen(url + path) as answer:
        return answer.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "thumbnails"))
    parser.add_argument("url")
    parser.add_argument("only", nargs="*", help="names of workflows, without .json")
    options = parser.parse_args()
    if options.action == "build":
        build(options.url)
    else:
        thumbnails(options.url, options.only)
