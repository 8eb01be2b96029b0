"""The example workflows: written against the nodes of a running ComfyUI, and run there for their images.

    python -m tools.workflows build URL              write workflows/*.json
    python -m tools.workflows thumbnails URL [NAME]  run every workflow, or some, and keep its image beside it

A workflow that needs more than the bundled checkpoint gets a drawing of its graph instead.

`thumbnails` needs pillow; the rest only the standard library.
"""

import argparse
import io
import json
import re
import time
import urllib.request
from urllib.parse import urlencode

from . import catalog
from .builder import FOLDER, NOTES, PACK, ROOT, THUMBNAIL, load, to_api

QUALITY = 88


def build(url: str) -> None:
    pack = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    core = get(url, "/system_stats")["system"]["comfyui_version"]
    for name, workflow in catalog.build(get(url, "/object_info"), {PACK: pack, "comfy-core": core}).items():
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


def thumbnails(url: str, only: list[str]) -> None:
    object_info = get(url, "/object_info")
    for example in catalog.EXAMPLES:
        if only and example.name not in only and example.key not in only:
            continue
        path, started = FOLDER / f"{example.name}.json", time.monotonic()
        if not example.small:
            card(load(path), example.name).save(path.with_suffix(".jpg"), quality=QUALITY)
            continue
        pictures = run(url, to_api(load(path), object_info))
        sheet(pictures).save(path.with_suffix(".jpg"), quality=QUALITY)
        print(f"{example.name}: {len(pictures)} pictures, {time.monotonic() - started:.0f} s", flush=True)


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


def card(workflow: dict, name: str):
    """A drawing of a graph under its English name."""
    from PIL import Image, ImageDraw, ImageFont

    size = (THUMBNAIL, THUMBNAIL * 2 // 3)
    picture = Image.new("RGB", size, "#1e1e22")
    pen = ImageDraw.Draw(picture)
    english = name.encode("ascii", "ignore").decode()[3:].replace("()", "").strip()
    title, _, needs = english.partition("(")
    pen.text((18, 14), title.strip(), "white", ImageFont.load_default(24))
    pen.text((18, 48), needs.partition(")")[0], "#b9b9c4", ImageFont.load_default(15))
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    low = max(node["pos"][1] + node["size"][1] for node in nodes.values())
    scale = min((size[0] - 36) / right, (size[1] - 100) / low)
    spot = {key: (18 + scale * node["pos"][0], 84 + scale * node["pos"][1]) for key, node in nodes.items()}
    for _, start, _, end, _, kind in workflow["links"]:
        from_x, from_y = spot[start][0] + scale * nodes[start]["size"][0], spot[start][1] + 6
        pen.line((from_x, from_y, spot[end][0], spot[end][1] + 12), "#8fb4ff" if kind == "IMAGE" else "#9a9aa6", 1)
    for key, node in nodes.items():
        (x, y), (width, height) = spot[key], (scale * side for side in node["size"])
        pen.rounded_rectangle((x, y, x + width, y + height), 4, "#343440", "#5b5b6b")
        pen.rounded_rectangle((x, y, x + width, y + 7), 4, "#e0762e" if "GLMImage" in node["type"] else "#5b5b6b")
    return picture


def get(url: str, path: str):
    return json.loads(fetch(url, path))


def fetch(url: str, path: str) -> bytes:
    with urllib.request.urlopen(url + path) as answer:
        return answer.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "thumbnails"))
    parser.add_argument("url")
    parser.add_argument("only", nargs="*", help="names of workflows, without .json, or their keys in catalog.py")
    options = parser.parse_args()
    if options.action == "build":
        build(options.url)
    else:
        thumbnails(options.url, options.only)
