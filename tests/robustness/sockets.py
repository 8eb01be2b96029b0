"""What may arrive at the inputs of a node: for each kind of ComfyUI's or our own, a good value and bad ones.

Runs inside ComfyUI's Python only. A wrong kind of socket is ComfyUI's to refuse; a right one may still carry too many
dimensions, no rows, NaN, or what another model made.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import comfy.sd
import torch
from comfyui_glm_image.nodes import loaders
from comfyui_glm_image.nodes.comfyui.loading import Devices
from comfyui_glm_image.nodes.comfyui.model_folders import BUNDLED, FROM_FOLDER
from comfyui_glm_image.nodes.comfyui.planner import PlannerPart
from comfyui_glm_image.nodes.conditioning import GLMImageConditioning
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.plan import Plan, Reference
from comfyui_glm_image.tests.robustness import values

NAN = float("nan")


def running(node: type) -> type:
    """The node's class as ComfyUI runs it, which knows its place in the graph."""
    return type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)})


@cache
def part(node: type):
    """The bundled checkpoint's component of a loader, opened once."""
    return node.execute(model=BUNDLED, dtype="fp32", device="cpu", **_file(node)).result[0]


def _file(node: type) -> dict:
    return {"weights": FROM_FOLDER} if node.files else {}


def planner(draw: random.Random) -> PlannerPart:
    return part(loaders.GLMImagePlannerLoader)


def glyph_encoder(draw: random.Random):
    return part(loaders.GLMImageGlyphEncoderLoader)


def model(draw: random.Random):
    return part(loaders.GLMImageDecoderLoader)


def other_model(draw: random.Random):
    """A MODEL of another architecture, as far as a node looks at it."""
    return SimpleNamespace(model=torch.nn.Linear(1, 1), model_options={})


def vae(draw: random.Random):
    return part(loaders.GLMImageVAELoader)


def other_vae(draw: random.Random):
    """The VAE of another model: its latents have four channels."""
    made = object.__new__(comfy.sd.VAE)
    made.encode = lambda pixels: torch.zeros(len(pixels), 4, pixels.shape[1] // 8, pixels.shape[2] // 8)
    made.decode = lambda samples: torch.zeros(len(samples), 8, 8, 3)
    return made


@cache
def _codebook() -> int:
    return planner(random.Random(0)).codebook_size


def plan(draw: random.Random) -> Plan:
    return Plan(torch.zeros(1, 6, dtype=torch.long), (2, 3), _codebook(), ["a 'b'"], 1)


def odd_plan(draw: random.Random) -> Plan:
    """Of another codebook, with references, of several images, or at the end of all seeds."""
    codebook = _codebook()
    reference = Reference(torch.zeros(64, 32, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), (2, 1))
    rows = torch.zeros(3, 6, dtype=torch.long)
    return draw.choice(
        (
            Plan(rows[:1], (2, 3), codebook + 1, ["a"], 1),
            Plan(rows[:1], (2, 3), codebook, ["a"], 1, references=[reference]),
            Plan(rows, (2, 3), codebook, ["a", "b", '"' * 99], 1),
            Plan(rows[:1], (1, 6), codebook, ["'" * 50_000], 2**63 - 1),
            Plan(torch.zeros(1, 16, dtype=torch.long), (1, 16), codebook, ["x\0"], 0),
        )
    )


def image(draw: random.Random) -> torch.Tensor:
    return torch.rand(1, 64, 96, 3)


SHAPES = (
    (0, 64, 96, 3), (1, 64, 96, 4), (1, 64, 96, 1), (1, 64, 96, 2), (1, 1, 1, 3), (3, 32, 32, 3), (64, 96, 3),
    (1, 64, 96), (1, 0, 96, 3), (1, 16, 1024, 3), (1, 33, 65, 3), (1, 2, 64, 96, 3), (2, 300, 200, 3),
)  # fmt: skip


def odd_image(draw: random.Random) -> torch.Tensor:
    made = draw.choice((torch.zeros, torch.rand))(draw.choice(SHAPES))
    made = made.to(draw.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)))
    return made * draw.choice((1, 1, 1, NAN, float("inf"), -1e30, 1e30))


def mask(draw: random.Random) -> torch.Tensor:
    return torch.ones(1, 64, 96)


def odd_mask(draw: random.Random) -> torch.Tensor:
    shape = draw.choice(((0, 64, 96), (64, 96), (1, 1, 64, 96), (1, 1, 1), (5, 8, 8), (1, 0, 8), (1, 64, 96, 3)))
    return torch.ones(shape) * draw.choice((1, 1, NAN, 1e30, -1))


def latent(draw: random.Random) -> dict:
    return {"samples": torch.zeros(1, 16, 8, 12)}


def odd_latent(draw: random.Random) -> dict:
    shape = draw.choice(
        ((1, 4, 8, 12), (0, 16, 8, 12), (1, 16, 7, 12), (1, 16, 8), (1, 16, 1, 8, 12), (3, 16, 8, 8), (1, 16, 1, 999))
    )
    made = {"samples": torch.zeros(shape) * draw.choice((1, 1, NAN)), "noise_mask": odd_mask(draw)}
    if draw.random() < 0.7:
        del made["noise_mask"]
    return made


@cache
def _conditioning() -> list:
    encoder, own = glyph_encoder(random.Random(0)), plan(random.Random(0))
    texts = {"glyph_texts": "", "negative_texts": ""}
    return (
        running(GLMImageConditioning)
        .execute(glyph_encoder=encoder, plan=own, glyph_mode="reference", **texts)
        .result[0]
    )


def conditioning(draw: random.Random) -> list:
    return _conditioning()


def odd_conditioning(draw: random.Random) -> list:
    """Of nothing, of another model, of another plan, or with what GLM-Image cannot follow."""
    embeds, about = _conditioning()[0]
    other = {**about, "prior_token_ids": about["prior_token_ids"] + 1}
    return draw.choice(
        (
            [],
            [[torch.zeros(1, 77, 768), {}]],
            [[torch.zeros(1, 77, 768), about]],
            [[embeds * NAN, about]],
            [[embeds, other]],
            [[embeds, {**about, "plan_grid": (1, 6)}]],
            [[embeds, {**about, "area": (1, 1, 0, 0)}]],
            [[embeds, {**about, "reference_latents": [torch.zeros(1, 16, 2, 2)]}]],
            [[embeds, about], [torch.zeros(1, 77, 768), {}]],
        )
    )


def layout(draw: random.Random) -> Layout:
    return Layout((TextRegion("OPEN", 0.1, 0.1, 0.5, 0.4),))


def odd_layout(draw: random.Random) -> Layout:
    regions = (
        TextRegion("猫" * 200, 0.0, 0.0, 0.001, 0.001),
        TextRegion("", 0.0, 0.0, 1.0, 1.0),
        TextRegion("a" * 5000, 0.9, 0.9, 0.1, 0.1),
    )
    return Layout(draw.choice((regions[:1], regions[1:2], regions[2:], regions, ())))


def devices(draw: random.Random) -> Devices:
    return Devices.one("cpu")


def odd_devices(draw: random.Random) -> Devices:
    return Devices(*(draw.choice(("cpu", "auto", "cuda:7", "npu:1", "cpu:1", "", "\ud800", "x" * 999)) for _ in "1234"))


def source(draw: random.Random):
    return "title: OPEN @ top 25%"


def odd_source(draw: random.Random):
    """Text, elements or boxes in place of a drawing."""
    box = {"x": 10, "y": 10, "width": 50, "height": 20, "metadata": {"type": "text", "text": "a"}}
    element = {"type": "text", "bbox": [100, 200, 300, 700], "text": "HI"}
    made = (values.string(draw), values.changed_json(draw, [box]), values.changed_json(draw, [element]), layout(draw))
    return draw.choice(made)


def drawn(draw: random.Random) -> str:
    return layout(draw).to_json()


def odd_drawn(draw: random.Random) -> str:
    return values.json_text(draw, json.loads(drawn(draw)))


Make = Callable[[random.Random], object]
KINDS: dict[str, tuple[Make, Make]] = {  # name of a socket -> a good value, a bad one
    "GLM_IMAGE_PLANNER": (planner, planner),
    "GLM_IMAGE_GLYPH_ENCODER": (glyph_encoder, glyph_encoder),
    "GLM_IMAGE_PLAN": (plan, odd_plan),
    "GLM_IMAGE_LAYOUT": (layout, odd_layout),
    "GLM_IMAGE_DEVICES": (devices, odd_devices),
    "GLM_IMAGE_LAYOUT_EDITOR": (drawn, odd_drawn),
    "MODEL": (model, other_model),
    "VAE": (vae, other_vae),
    "IMAGE": (image, odd_image),
    "MASK": (mask, odd_mask),
    "LATENT": (latent, odd_latent),
    "CONDITIONING": (conditioning, odd_conditioning),
}
