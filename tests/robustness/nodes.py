"""Bad inputs of every node: `python tests/robustness/nodes.py ROOT --count 2000 --seed 1`, run by ComfyUI's Python in
ComfyUI's folder; ROOT is this repository.

Each node is checked and run as ComfyUI does it, without a server: values of widgets pass its `validate_inputs`, and
those that would come by a link do not. What starts real work ends there: nothing is planned, sampled or sent. Texts for
the page are looked at on their way: none may hold markup.
"""

import asyncio
import importlib
import importlib.util
import inspect
import random
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT, *ARGUMENTS = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, "")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # before `comfy` puts another module `utils` on the path
import comfy.sample  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy_api.latest import io  # noqa: E402
from server import PromptServer  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "comfyui_glm_image", f"{ROOT}/__init__.py", submodule_search_locations=[ROOT]
)
sys.modules["comfyui_glm_image"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["comfyui_glm_image"])

from comfyui_glm_image import nodes  # noqa: E402
from comfyui_glm_image.nodes import layout_guidance, plan  # noqa: E402
from comfyui_glm_image.pipeline.planning.make_plan import PlanRequest  # noqa: E402
from comfyui_glm_image.pipeline.remote.pool import Pool  # noqa: E402
from comfyui_glm_image.tests.robustness import run, sockets, values  # noqa: E402

MARKUP = ("<", ">", "[[")
GOOD = {  # where the default is more than is wanted here
    "width": 96, "height": 64, "steps": 2, "megapixels": 0.0, "server": "http://127.0.0.1:9", "prompt": "a sign 'STOP'",
    "texts": "OPEN", "device": "cpu", "languages": "eng",
}  # fmt: skip


class WorkBegins(Exception):
    """An input was taken: from here on it would be planned, sampled or sent."""


class Page:
    """In place of ComfyUI's server: looks at what nodes say."""

    client_id = "page"

    def send_sync(self, event, data, client_id=None):
        look_at(data.get("text", "") if isinstance(data, dict) else "")


def look_at(text: str) -> None:
    text.encode()
    assert not any(sign in text for sign in MARKUP), f"markup on the page: {text[:200]!r}"


def planned(part, prompt, height, width, *, images=(), controls=None, **choices):
    """Every check of a plan, and none of its work."""
    pictures = [plan.to_pil(image) for image in images]
    request = PlanRequest(prompt, height, width, pictures, choices.pop("seed"), choices.pop("count", 1), **choices)
    prepared = part.settings.prepare(request)
    if part.guide and height * width <= 256 * 256:
        part.guide(part, prepared.grids)
    raise WorkBegins


def few(work, size):
    """`work`, unless it is on more than a few small images."""

    def do(*arguments, **named):
        if size(*arguments, **named) > 1 << 16:
            raise WorkBegins
        return work(*arguments, **named)

    return do


def begin(*arguments, **named):
    raise WorkBegins


def ignore(*arguments, **named):
    pass


def stop_before_work() -> None:
    PromptServer.instance = Page()
    plan.make_plan = layout_guidance.make_plan = planned
    plan.plan_of_images = few(plan.plan_of_images, lambda part, images, prompt: sum(i.width * i.height for i in images))
    comfy.sample.sample_custom = few(
        comfy.sample.sample_custom, lambda model, noise, cfg, sampler, sigmas, *_, **__: noise.numel() * len(sigmas)
    )
    Pool.connect = begin
    comfy.utils.ProgressBar = lambda *_, **__: SimpleNamespace(update=ignore, update_absolute=ignore)


def good(draw: random.Random, widget):
    if widget.id in GOOD:
        return GOOD[widget.id]
    if isinstance(widget, io.Combo.Input):
        return draw.choice(list(widget.options)) if widget.options else "none"
    if isinstance(widget, io.WidgetInput) and widget.default is not None:
        return widget.default
    if isinstance(widget, (io.MultiType.Input, io.String.Input)):
        return ""
    return sockets.KINDS[widget.get_io_type()][0](draw)


def bad(draw: random.Random, widget):
    if isinstance(widget, io.Combo.Input):
        return values.plain(draw)
    if isinstance(widget, (io.Int.Input, io.Float.Input)):
        return draw.choice((values.number, values.number, values.string))(draw)
    if isinstance(widget, io.Boolean.Input):
        return draw.choice((True, False, 0, 1))
    if isinstance(widget, io.MultiType.Input):
        return sockets.odd_source(draw)
    if isinstance(widget, io.String.Input):
        return values.string(draw) if draw.random() < 0.9 else values.number(draw)
    return sockets.KINDS[widget.get_io_type()][1](draw)


def as_widget(widget, value):
    """What ComfyUI makes of a widget's value, as `execution.validate_inputs` does; None where it refuses the value."""
    kinds = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    kind = kinds.get(widget.get_io_type())
    try:
        value = kind(value) if kind else value
    except (ValueError, TypeError, OverflowError):
        return None
    low, high = getattr(widget, "min", None), getattr(widget, "max", None)
    if (low is not None and value < low) or (high is not None and value > high):
        return None
    return value


def arguments(draw: random.Random, node: type) -> tuple[dict, dict]:
    """All values of a call, and those of its widgets: the others come by links."""
    inputs = [widget for widget in node.define_schema().inputs if not widget.optional or draw.random() < 0.6]
    wrong = draw.sample(inputs, draw.randint(0, min(2, len(inputs))))
    made = {widget.id: (bad if widget in wrong else good)(draw, widget) for widget in inputs}
    given = {}
    for widget in inputs:
        if isinstance(widget, io.WidgetInput) and draw.random() < 0.6:
            value = as_widget(widget, made[widget.id])
            if value is not None:
                made[widget.id] = given[widget.id] = value
    return made, given


def call(node: type, made: dict, given: dict) -> None:
    """As ComfyUI: check when a graph is queued, then run."""
    read = inspect.signature(node.validate_inputs).parameters
    node.validate_inputs(**{name: value for name, value in given.items() if name in read})
    try:
        done = sockets.running(node).execute(**made)
        done = asyncio.run(done) if inspect.iscoroutine(done) else done
    except WorkBegins:
        return
    for text in getattr(done.ui, "value", None) and [done.ui.value] or []:
        look_at(text)


def surface(node: type):
    def maker(folder: Path):
        folder.mkdir(parents=True)
        folder_paths.set_output_directory(str(folder))

        def make(draw: random.Random):
            made, given = arguments(draw, node)
            return lambda: call(node, made, given)

        return make

    return maker


if __name__ == "__main__":
    torch.set_num_threads(1)
    stop_before_work()
    sys.exit(run.main(ARGUMENTS, {node.__name__: surface(node) for node in nodes.NODES}))
