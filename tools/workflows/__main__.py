"""The example workflows: written against the nodes of a running ComfyUI, and run there for their images.

    python -m tools.workflows build URL              write workflows/*.json
    python -m tools.workflows thumbnails URL [NAME]  run every workflow, or some, and keep its image beside it

`thumbnails` needs pillow; the rest only the standard library.
"""

import argparse
import io
import json
import re
import time
import urllib.request
from urllib.parse import urlencode

from . import examples
from .builder import FOLDER, PACK, ROOT, THUMBNAIL, load, to_api, workflow_files

QUALITY = 88


def build(url: str) -> None:
    pack = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    core = get(url, "/system_stats")["system"]["comfyui_version"]
    for name, workflow in examples.build(get(url, "/object_info"), {PACK: pack, "comfy-core": core}).items():
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


def thumbnails(url: str, only: list[str]) -> None:
    object_info = get(url, "/object_info")
    for path in workflow_files():
        if path.stem in examples.RELEASE_ONLY or (only and path.stem not in only):
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
