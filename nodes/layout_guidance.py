"""Layouts that steer planner and decoder, and plans made again in chosen boxes."""

import re
from dataclasses import replace

import torch
from comfy_api.latest import io

from ..pipeline.errors import InputError
from ..pipeline.geometry import TOKEN
from ..pipeline.layout.boxes import inside_boxes
from ..pipeline.layout.control import (
    GRIDS,
    PLAN_MODES,
    PlanControl,
    plan_controls,
    regional_attention_mask,
    replan_controls,
    sketch_tokens,
)
from ..pipeline.layout.regions import Layout
from ..pipeline.layout.sketch import render
from ..pipeline.plan import Plan
from . import sockets
from .comfyui.images import to_image, to_pil
from .comfyui.planning import make_plan
from .inputs import LAYOUT, lines, seed_input, token_sampling_inputs
from .plan import check_same_codebook
from .sampling import empty_latent


def sketch_or_own(sketch: torch.Tensor | None, layout: Layout, height: int, width: int):
    """The connected sketch as an image, else one rendered from the layout."""
    return render(layout, height, width) if sketch is None else to_pil(sketch[0])


class GLMImageLayoutGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLayoutGuidance",
            display_name="GLM-Image Layout Guidance",
            category=LAYOUT,
            description="Lets a layout guide the planner: inside the boxes, the sketch's own tokens are favoured or "
            "imposed. Put it between the planner and GLM-Image Plan.",
            inputs=[
                sockets.Planner.Input("planner"),
                sockets.Layout.Input("layout"),
                io.Combo.Input(
                    "mode",
                    options=list(PLAN_MODES),
                    default="bias",
                    tooltip="off changes nothing. bias adds to the scores of the sketch's tokens. force takes them.",
                ),
                io.Float.Input(
                    "strength",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Added to a sketch token's logit in mode bias; 0 is off, 20 is as good as force.",
                ),
                io.Combo.Input(
                    "grids",
                    options=list(GRIDS),
                    default="both",
                    tooltip="Which grid is guided: the preview sets the composition, the full grid the image.",
                ),
                io.Float.Input(
                    "falloff",
                    default=0.0,
                    min=0.0,
                    max=32.0,
                    step=0.5,
                    tooltip="Width, in tokens of 32 px, over which the guidance weakens towards a box's edge.",
                ),
                io.Image.Input("sketch", optional=True, tooltip="The image to follow; without it the layout's own."),
            ],
            outputs=[sockets.Planner.Output(display_name="planner")],
        )

    @classmethod
    def execute(cls, planner, layout, mode, strength, grids, falloff, sketch=None) -> io.NodeOutput:
        guidance = PlanControl(mode, strength, grids, falloff)
        if not guidance.active:
            return io.NodeOutput(planner)
        return io.NodeOutput(planner.with_controls(make_guide(guidance, layout, sketch)))


def make_guide(guidance: PlanControl, layout: Layout, sketch: torch.Tensor | None):
    """Guidance for whatever size is planned; the planner is on its device when it is called."""

    def guide(part, grids: dict[str, tuple[int, int]]) -> dict:
        h, w = grids["full"]
        image = sketch_or_own(sketch, layout, TOKEN * h, TOKEN * w)
        device, dtype = part.patcher.load_device, part.module.compute_dtype
        tokens = sketch_tokens(part.module, image, grids, part.settings.processor, device, dtype)
        return plan_controls(guidance, layout, tokens, grids)

    return guide


def sketch_inputs() -> list:
    """What the decoder needs besides its boxes."""
    return [
        io.String.Input(
            "glyph_texts",
            default="",
            force_input=True,
            optional=True,
            tooltip="The texts as GLM-Image Conditioning got them; without it the layout's.",
        ),
        io.Vae.Input("vae", optional=True, tooltip="Needed when sketch_level is below 1."),
        io.Image.Input("sketch", optional=True, tooltip="Needed when sketch_level is below 1."),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="An empty latent of the plan's size: gives the number of images, and passes a bypassed node.",
        ),
    ]


class GLMImageLayoutDecoderGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLayoutDecoderGuidance",
            display_name="GLM-Image Layout Guidance (Decoder)",
            category=LAYOUT,
            description="Lets a layout guide the decoder: each box sees only its own text for the first steps, and may "
            "start from the sketch. Feed model, positive and latent to KSampler.",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                sockets.Layout.Input("layout"),
                io.Float.Input(
                    "attention",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps in which a box sees only its own text; 0 is off.",
                ),
                io.Boolean.Input(
                    "text_elsewhere",
                    default=True,
                    tooltip="During these steps the rest of the image sees all texts; off: none.",
                ),
                io.Float.Input(
                    "sketch_level",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Noise level down to which boxes follow the sketch; 1 is off, lower follows longer.",
                ),
                *sketch_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Conditioning.Output(display_name="positive"),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        layout,
        attention,
        text_elsewhere,
        sketch_level,
        glyph_texts="",
        vae=None,
        sketch=None,
        latent=None,
    ) -> io.NodeOutput:
        h, w = plan_grid(positive)
        if attention > 0:
            texts = lines(glyph_texts) or layout.glyph_texts()
            visible = regional_attention_mask(layout, texts, (2 * h, 2 * w), text_elsewhere)
            positive = timed(positive, visible, attention)
        if latent is None:
            latent = {"samples": empty_latent(TOKEN * h, TOKEN * w, len(positive[0][1]["prior_token_ids"]))}
        if sketch_level < 1:
            if vae is None or sketch is None:
                raise InputError(f"sketch_level {sketch_level} follows the sketch; connect vae and sketch, or use 1")
            model, latent = held(model, vae, sketch, layout, (h, w), sketch_level, len(latent["samples"]))
        return io.NodeOutput(model, positive, latent)


def plan_grid(positive: list) -> tuple[int, int]:
    """(h, w) tokens of the plan in a conditioning."""
    if not positive or "plan_grid" not in positive[0][1]:
        raise InputError("this conditioning holds no plan; connect the positive output of GLM-Image Conditioning")
    return positive[0][1]["plan_grid"]


def timed(positive: list, visible: torch.Tensor, until: float) -> list:
    """The conditioning with glyphs shown by `visible` for the first share of the steps, then as it was."""
    entries = []
    for embeds, about in positive:
        if embeds.shape[1] != visible.shape[-1]:
            raise InputError(
                f"the conditioning has {embeds.shape[1]} glyph tokens, the layout's texts make {visible.shape[-1]}; "
                "set glyph_mode to list in GLM-Image Conditioning and connect glyph_texts of the layout there and here"
            )
        entries.append([embeds, {**about, "glyph_visible": visible, "start_percent": 0.0, "end_percent": until}])
        if until < 1:
            entries.append([embeds, {**about, "start_percent": until, "end_percent": 1.0}])
    return entries


def held(model, vae, sketch: torch.Tensor, layout: Layout, grid: tuple[int, int], level: float, rows: int):
    """(model, latent) whose boxes follow the sketch's latent while the noise is above `level`."""
    h, w = grid
    image = to_image(to_pil(sketch[0]).resize((TOKEN * w, TOKEN * h)))
    samples = vae.encode(image).repeat(rows, 1, 1, 1)
    free = 1.0 - inside_boxes(layout, (4 * h, 4 * w)).any(dim=0).float()
    clone = model.clone()

    def mask(sigma, denoise_mask, extra_options):
        return denoise_mask if float(sigma.max()) > level else torch.ones_like(denoise_mask)

    clone.set_model_denoise_mask_function(mask)
    return clone, {"samples": samples, "noise_mask": free[None]}


class GLMImageReplanRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageReplanRegion",
            display_name="GLM-Image Replan Region",
            category=LAYOUT,
            description="Keeps a plan and samples it again in the chosen boxes only, with another seed or guidance.",
            inputs=[
                sockets.Planner.Input("planner"),
                sockets.Plan.Input("plan"),
                sockets.Layout.Input("layout"),
                io.String.Input(
                    "regions", default="", tooltip="Numbers of the boxes as the editor shows them: 1, 3. Empty: all."
                ),
                seed_input("Seed of the new part; image k of a batch uses seed + k.", default=1),
                *token_sampling_inputs(),
                io.String.Input(
                    "prompt",
                    default="",
                    force_input=True,
                    optional=True,
                    tooltip="Another prompt for the new part; without it the plan's own.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, planner, plan, layout, regions, seed, temperature, top_p, prompt="") -> io.NodeOutput:
        check_same_codebook(planner, plan)
        chosen = chosen_regions(layout, regions)
        new = make_plan(
            planner,
            prompt or shared_prompt(plan),
            plan.height,
            plan.width,
            seed=seed,
            count=len(plan),
            temperature=temperature,
            top_p=top_p,
            images=[reference.pixels.float() / 255 for reference in plan.references],
            controls=replan_controls(plan, chosen),
        )
        return io.NodeOutput(replace(new, references=plan.references))


def chosen_regions(layout: Layout, numbers: str) -> Layout:
    """The regions with these numbers, counted from 1; an empty string means all."""
    if not numbers.strip():
        return layout
    chosen = []
    for number in re.split(r"[\s,;]+", numbers.strip()):
        if not number.isdecimal() or not 1 <= int(number) <= len(layout):
            raise InputError(f"region {number!r} is not in the layout; it has 1 to {len(layout)}")
        chosen.append(layout.regions[int(number) - 1])
    return Layout(tuple(chosen))


def shared_prompt(plan: Plan) -> str:
    if len(set(plan.prompts)) > 1:
        raise InputError("the plans of this batch have different prompts; connect the prompt to plan again with")
    return plan.prompts[0]
