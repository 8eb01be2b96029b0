"""Where bad inputs come in: for each surface a function of a folder, whose result makes one input from a generator.

An input is a callable without arguments. None of them draws an image: what is valid ends where work would begin.
"""

import io
import json
import random
import shutil
from collections.abc import Callable
from email.message import Message
from functools import partial
from pathlib import Path

import torch
from comfyui_glm_image.pipeline import images
from comfyui_glm_image.pipeline.denoising.conditioning import glyph_rows
from comfyui_glm_image.pipeline.denoising.options import DenoiseOptions
from comfyui_glm_image.pipeline.files import check_writable
from comfyui_glm_image.pipeline.layout.check import check, inside_page
from comfyui_glm_image.pipeline.layout.parse import read_layout
from comfyui_glm_image.pipeline.layout.prompt import to_prompt
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.layout.sketch import render
from comfyui_glm_image.pipeline.loading.checkpoint import Checkpoint
from comfyui_glm_image.pipeline.loading.lora_files import check_lora_file, read_planner_lora
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import (
    DitConfig,
    GenerationConfig,
    GlyphConfig,
    ProcessorConfig,
    SchedulerConfig,
    VaeConfig,
    VisionLanguageConfig,
)
from comfyui_glm_image.pipeline.models.glyph_encoder import GlyphEncoder
from comfyui_glm_image.pipeline.plan import Plan, Reference
from comfyui_glm_image.pipeline.planning.make_plan import PlanRequest
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder
from comfyui_glm_image.pipeline.remote.addresses import parse_engine, parse_image_url
from comfyui_glm_image.pipeline.remote.http import Response
from comfyui_glm_image.pipeline.remote.images import decode
from comfyui_glm_image.pipeline.remote.request import ImageRequest, PlannerSampling, with_texts
from comfyui_glm_image.pipeline.remote.responses import read_json, retry_after
from comfyui_glm_image.pipeline.text import quoted_texts
from comfyui_glm_image.tests.robustness import values
from comfyui_glm_image.tests.robustness.commands import command_lines, other_commands
from PIL import Image
from safetensors.torch import save

SMALL = Path(__file__).resolve().parents[2] / "checkpoints" / "small"
SETTINGS = {
    "transformer/config.json": DitConfig.from_json,
    "vae/config.json": VaeConfig.from_json,
    "scheduler/scheduler_config.json": SchedulerConfig.from_json,
    "text_encoder/config.json": GlyphConfig.from_json,
    "vision_language_encoder/config.json": VisionLanguageConfig.from_json,
    "vision_language_encoder/generation_config.json": GenerationConfig.from_json,
    "processor/processor_config.json": lambda path: ProcessorConfig.from_folder(path.parent),
}
TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 1 / 0 }}", "{{ 9 ** 9 ** 9 }}", "{{ 'a' * 10 ** 9 }}", "{{ '%999999999d' % 1 }}", "{{ lipsum(n=99999999) }}",
    "{{ 'a' | center(999999999) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[9].x.y }}",
    "{{ messages.append(1) }}", "{% include 'a' %}", "{{ ''.__class__ }}", "{% for", "{{ raise_exception('no') }}",
    "{{ range(10 ** 9) | list }}", "{{ [1] * 999999999 }}", "plain", "",
)  # fmt: skip
Case = Callable[[], object]
Maker = Callable[[random.Random], Case]


def some(draw: random.Random, good: dict, bad: Callable = values.value) -> dict:
    """Good arguments, of which one to three are replaced."""
    return good | {name: bad(draw) for name in draw.sample(list(good), draw.randint(1, min(3, len(good))))}


def plan_requests(folder: Path) -> Maker:
    good = {
        "prompts": "a sign 'STOP'", "height": 64, "width": 96, "images": (), "seed": 1, "count": 1, "temperature": None,
        "top_p": None,
    }  # fmt: skip
    return lambda draw: partial(PlanRequest, **some(draw, good))


def denoise_options(folder: Path) -> Maker:
    good = {
        "steps": 4, "guidance_scale": 1.5, "seed": 1, "glyph_texts": ["a"], "negative_glyph_texts": None,
        "glyph_mode": "reference", "guidance_interval": None, "step_cache": None, "guidance_batching": "auto",
    }  # fmt: skip

    def options(given: dict) -> None:
        made = DenoiseOptions.of(**given)
        glyph_rows(["a 'b'"], made.glyph_texts, made.glyph_mode)

    return lambda draw: partial(options, some(draw, good))


def prompts(folder: Path) -> Maker:
    encoder = PromptEncoder(
        SMALL / "processor", VisionLanguageConfig.from_json(SMALL / "vision_language_encoder" / "config.json")
    )

    def read(text: str) -> None:
        for mode in ("reference", "prompt_order"):
            quoted_texts(text, mode)
        encoder.encode(text, (2, 3), (16, 16))

    return lambda draw: partial(read, "".join(values.string(draw) for _ in range(draw.randint(1, 8))))


def layouts(folder: Path) -> Maker:
    page = Layout((TextRegion("OPEN", 0.1, 0.1, 0.5, 0.2), TextRegion("猫", 0.1, 0.5, 0.5, 0.3, direction="vertical")))
    good = json.loads(page.to_json())
    boxes = [{"x": 10, "y": 10, "width": 50, "height": 20, "metadata": {"type": "text", "text": "a", "desc": "red"}}]
    elements = [{"type": "text", "bbox": [100, 200, 300, 700], "text": "HI", "desc": "red"}]
    sentences = {"sentence_list": ["a", "b"], "carrier_list": ["sign"]}

    def read(value) -> None:
        layout = read_layout(value, 128, 128)
        check(layout, 128, 128)
        to_prompt(layout)
        render(inside_page(layout), 128, 128)

    def make(draw: random.Random) -> Case:
        form = draw.choice((good, boxes, elements, sentences))
        kind = draw.random()
        if kind < 0.5:
            value = values.changed_json(draw, form)
        elif kind < 0.8:
            value = values.json_text(draw, form)
        else:
            value = "\n".join(f"{values.string(draw)} @ {draw.choice(('top 20%', '5%', '', '999%'))}" for _ in range(3))
        return lambda: read(value)

    return make


def plan_files(folder: Path) -> Maker:
    folder.mkdir()
    reference = Reference(torch.zeros(64, 32, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), (2, 1))
    ids = torch.zeros(2, 6, dtype=torch.long)
    plan = Plan(ids, (2, 3), 50, ["a", "b"], 7, torch.zeros(2, 208, dtype=torch.long), (13, 16), [reference])
    plan.save(folder / "good.safetensors")
    data = (folder / "good.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["plan"])
    path = folder / "bad.safetensors"

    def load(content: bytes) -> None:
        path.write_bytes(content)
        Plan.load(path)

    def make(draw: random.Random) -> Case:
        if draw.random() < 0.4:
            return partial(load, values.damaged(draw, data))
        changed = json.loads(json.dumps(header))
        if draw.random() < 0.7:
            changed["__metadata__"]["plan"] = values.json_text(draw, about)
        else:
            changed = values.changed_json(draw, header)
        text = json.dumps(changed).encode()
        return lambda: load(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return make


def fields_of_plans(folder: Path) -> Maker:
    good = {
        "prior_token_ids_d32": torch.zeros(1, 6, dtype=torch.long), "grid": (2, 3), "codebook_size": 50,
        "prompts": ["a"],
        "seed": 7, "preview_token_ids": torch.zeros(1, 4, dtype=torch.long), "preview_grid": (2, 2),
    }  # fmt: skip
    return lambda draw: partial(Plan, **some(draw, good))


def image_files(folder: Path) -> Maker:
    folder.mkdir()
    files = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        file = io.BytesIO()
        picture = Image.effect_noise((40, 30), 80).convert("P" if form == "GIF" else "RGB")
        picture.save(file, form, **({"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + bytes(30)} if form == "JPEG" else {}))
        files.append(file.getvalue())
    path = folder / "image"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        images.read(path)

    return lambda draw: partial(read, values.damaged(draw, draw.choice(files)))


def settings_of_checkpoints(folder: Path) -> Maker:
    def make(draw: random.Random) -> Case:
        name, read = draw.choice(list(SETTINGS.items()))
        text = values.json_text(draw, json.loads((SMALL / name).read_text(encoding="utf-8")))
        path = folder / name

        def case():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            read(path)

        return case

    return make


def processors_of_checkpoints(folder: Path) -> Maker:
    config = VisionLanguageConfig.from_json(SMALL / "vision_language_encoder" / "config.json")
    names = [path.name for path in (SMALL / "processor").iterdir() if path.suffix in (".json", ".jinja")]

    def make(draw: random.Random) -> Case:
        name = draw.choice(names)
        if name.endswith(".jinja"):
            text = draw.choice((*TEMPLATES, values.string(draw)))
        else:
            text = values.json_text(draw, json.loads((SMALL / "processor" / name).read_text(encoding="utf-8")))

        def case():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(SMALL / "processor", folder)
            (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
            PromptEncoder(folder, config).encode("a 'b'", (2, 3), (16, 16))

        return case

    return make


def weight_files(folder: Path) -> Maker:
    shutil.copytree(SMALL / "text_encoder", folder)
    config = GlyphConfig.from_json(folder / "config.json")
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    weight_map = {"weight_map": dict.fromkeys(list(header)[1:6], "model.safetensors")}

    def load(content: bytes, listed: str | None) -> None:
        path.write_bytes(content)
        index.unlink(missing_ok=True)
        if listed is not None:
            index.write_text(listed, encoding="utf-8", errors="surrogatepass")
        load_module(GlyphEncoder, config, folder, "cpu", torch.float32)

    def make(draw: random.Random) -> Case:
        kind = draw.random()
        if kind < 0.4:
            return partial(load, values.damaged(draw, data), None)
        if kind < 0.7:
            text = json.dumps(values.changed_json(draw, header)).encode()
            return lambda: load(len(text).to_bytes(8, "little") + text + data[8 + length :], None)
        return partial(load, data, values.json_text(draw, weight_map))

    return make


def folders_of_checkpoints(folder: Path) -> Maker:
    def make(draw: random.Random) -> Case:
        part = draw.choice(("transformer", "vae", "text_encoder", "vision_language_encoder"))
        act = draw.choice(("missing", "file", "empty", "pickle", "loop"))

        def case():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in SMALL.iterdir():
                if path.name != part:
                    (folder / path.name).symlink_to(path)
            if act == "file":
                (folder / part).write_text("x")
            elif act == "loop":
                (folder / part).symlink_to(folder / part)
            elif act != "missing":
                (folder / part).mkdir()
                if act == "pickle":
                    (folder / part / "model.bin").write_bytes(b"x")
            Checkpoint(folder, "test").check()

        return case

    return make


def files_to_write(folder: Path) -> Maker:
    inside = folder / "a" / "b" / "c" / "d"
    inside.mkdir(parents=True)

    def write(name: str) -> None:
        check_writable(inside / name)

    return lambda draw: partial(write, values.string(draw))


def requests_to_engines(folder: Path) -> Maker:
    good = {"prompt": "a 'b'", "width": 64, "height": 64, "seed": 1, "steps": 4, "guidance": 1.5, "references": ()}
    server = parse_engine("http://127.0.0.1:8000/v1")
    path = folder / "vision_language_encoder" / "generation_config.json"
    settings = {"temperature": 0.9, "top_p": 0.75, "top_k": 5, "eos_token_id": [1, 2]}

    def sampling(text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        PlannerSampling.of_checkpoint(folder)

    def make(draw: random.Random) -> Case:
        text, words = values.string(draw), [values.string(draw) for _ in range(3)]
        address = draw.choice(("http://", "https://", "", "//", "http://[", "https://a:b@")) + text
        return draw.choice(
            (
                partial(ImageRequest, **some(draw, good)),
                lambda: parse_engine(address),
                lambda: parse_image_url(address, server),
                lambda: with_texts("a", words),
                partial(sampling, values.json_text(draw, settings)),
            )
        )

    return make


def answers_of_engines(folder: Path) -> Maker:
    server, request = parse_engine("http://127.0.0.1:8000"), ImageRequest("a", 64, 64)
    answer = {"data": [{"b64_json": "aGk="}], "error": {"code": "1301", "message": "no"}, "detail": [{"msg": "x"}]}
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(file, "PNG")

    def make(draw: random.Random) -> Case:
        headers = Message()
        for name in ("Content-Type", "Retry-After", "Location"):
            headers[name] = values.string(draw).encode("ascii", "replace").decode().replace("\r", "").replace("\n", "")
        body = values.json_text(draw, answer).encode("utf-8", "surrogatepass")
        response = Response(draw.choice((200, 301, 400, 401, 403, 404, 408, 429, 500, 503, 999)), headers, body)

        def read():
            retry_after(response)
            read_json(response, server, None)

        damaged = values.damaged(draw, file.getvalue())
        return draw.choice((read, lambda: decode(damaged, request, server, True)))

    return make


def planner_loras(folder: Path) -> Maker:
    """Files of PEFT for the planner, damaged or with other shapes, names and settings."""
    folder.mkdir()
    config = VisionLanguageConfig.from_json(SMALL / "vision_language_encoder" / "config.json")
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    weights = _lora_tensors(name, config.text_config)
    path, beside = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    settings = {
        "lora_alpha": 8,
        "r": 2,
        "use_rslora": False,
        "alpha_pattern": {"q_proj": 4},
        "target_modules": ["q_proj"],
    }

    def read(content: bytes, about: str, strength) -> None:
        path.write_bytes(content)
        beside.write_text(about, encoding="utf-8", errors="surrogatepass")
        check_lora_file(path, strength)
        read_planner_lora(path, config)

    def make(draw: random.Random) -> Case:
        changed = dict(weights)
        for key in draw.sample(list(changed), draw.randint(0, 2)):
            tensor = changed.pop(key)
            key = draw.choice(
                (key, key.replace("q_proj", "z_proj"), key.replace("lora_A", "lora_C"), values.string(draw))
            )
            kinds = (
                tensor * float("nan"),
                tensor.long(),
                tensor.T.contiguous(),
                tensor[:1],
                tensor[:, :0],
                tensor.half(),
            )
            changed[key.encode("utf-8", "replace").decode()] = draw.choice(kinds)
        data = save(changed)
        data = values.damaged(draw, data) if draw.random() < 0.3 else data
        strength = values.number(draw) if draw.random() < 0.2 else 0.8
        return partial(read, data, values.json_text(draw, settings), strength)

    return make


def _lora_tensors(layer: str, config) -> dict[str, torch.Tensor]:
    width, rank = config.hidden_size, 2
    return {f"{layer}.lora_A.weight": torch.zeros(rank, width), f"{layer}.lora_B.weight": torch.zeros(width, rank)}


SURFACES = {
    make.__name__.replace("_", " "): make
    for make in (
        plan_requests, denoise_options, prompts, layouts, fields_of_plans, plan_files, image_files,
        settings_of_checkpoints, processors_of_checkpoints, weight_files, folders_of_checkpoints,
        files_to_write, requests_to_engines, answers_of_engines, planner_loras, command_lines, other_commands,
    )
}  # fmt: skip
