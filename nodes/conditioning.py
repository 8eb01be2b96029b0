"""GLM-Image Conditioning: a plan and the texts to render -> what any sampler gives the decoder.

The entries of a CONDITIONING, besides its glyph embeddings (B, L, C):
`prior_token_ids` int64 (B, N), one a patch; `prior_token_drop`, True where the plan is ignored; `plan_grid` (h, w)
tokens; `codebook_size`; `glyph_mask` bool (B, L) unless all texts are equally long; `reference_latents`, the VAE's
latents (1, 16, h, w) of every reference; `reference_token_ids` int64 (1, patches) of each.
"""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..pipeline.denoising import conditioning as pipeline_conditioning
from ..pipeline.denoising.conditioning import glyph_rows, reference_patch_ids, shared_rows
from ..pipeline.devices.device import assert_on, current
from ..pipeline.errors import InputError
from ..pipeline.plan import Plan
from ..pipeline.text import check_texts
from . import sockets
from .comfyui.page import show
from .comfyui.planner import GlyphEncoderPart
from .inputs import MENU, lines

REFERENCE, LIST = "reference", "list"
MODES = [REFERENCE, "prompt_order", LIST]


def conditionings(
    part: GlyphEncoderPart,
    plan: Plan,
    texts: list[list[str]],
    negative_texts: list[str],
    references: list,
    named: bool = False,
) -> tuple[list, list]:
    """Glyph texts for each image of the plan, latents for each of its references -> positive, negative.

    `named`: texts that spell a token of ByT5's own become it, as in the reference.
    """
    comfy.model_management.load_models_gpu([part.patcher], force_full_load=True)
    shared = {
        "prior_token_ids": plan.prior_token_ids,
        "plan_grid": plan.grid,
        "codebook_size": plan.codebook_size,
    }
    positive = {**shared, "prior_token_drop": False}
    if references:
        positive["reference_latents"] = references
        positive["reference_token_ids"] = [reference_patch_ids(reference) for reference in plan.references]
    negative = {**shared, "prior_token_drop": True}
    return _conditioning(part, texts, positive, named), _conditioning(part, [negative_texts], negative)


def _conditioning(part: GlyphEncoderPart, texts: list[list[str]], entries: dict, named: bool = False) -> list:
    device = comfy.model_management.intermediate_device()
    with torch.no_grad(), current(part.patcher.load_device):
        embeds, mask = part.module.embed_batch(shared_rows(texts), named)
    assert_on(part.patcher.load_device, glyphs=embeds)
    if mask is not None:
        entries = {**entries, "glyph_mask": mask.to(device)}
    return [[embeds.to(device, torch.float32), entries]]


def texts_of(plan: Plan, mode: str, listed: str) -> list[list[str]]:
    """The texts to render in each image: those listed, if there are any, else the prompts' own by mode.

    Mode reference reads the prompt alone, as it always has: what stands in the list of a saved workflow stays unread.
    """
    given = None if mode == REFERENCE else lines(listed)
    return glyph_rows(plan.prompts, given if given or mode == LIST else None, mode)


def report(plan: Plan, rows: list[list[str]], mode: str, listed: str) -> str:
    """The texts that will be rendered, a line for each image whose texts differ, and what looks like a mistake."""
    unread = mode == REFERENCE and lines(listed)
    found = ["glyph_texts are not read in mode reference; choose prompt_order or list"] if unread else []
    for prompt, row in dict.fromkeys(zip(plan.prompts, map(tuple, rows))):
        found.append(f"texts: {' | '.join(row)}" if row else "no texts: the prompt quotes none, and none are listed")
        if prompt.count('"') % 2:
            found[-1] += '; the prompt has a quote " that is not closed'
    return "\n".join(dict.fromkeys(found))


def encode_references(vae, plan: Plan) -> list[torch.Tensor]:
    """The VAE's latents (1, 16, 4h, 4w) of a plan's references."""
    if not plan.references:
        return []
    if vae is None:
        raise InputError(
            f"the plan has {len(plan.references)} reference images, which the decoder needs as well; "
            "connect the vae of Load GLM-Image to this node"
        )
    return pipeline_conditioning.encode_references(plan, vae.encode)


def check_listed(glyph_mode: str, glyph_texts: str, negative_texts: str) -> None:
    """Refuse listed texts that no image can show, as the glyph encoder would after planning."""
    for text in (negative_texts, "" if glyph_mode == REFERENCE else glyph_texts):
        check_texts(lines(text))


class GLMImageConditioning(io.ComfyNode):
    checks = (check_listed,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageConditioning",
            display_name="GLM-Image Conditioning",
            category=MENU,
            description="Turns a plan and the texts to render into conditioning for any sampler.",
            inputs=[
                sockets.GlyphEncoder.Input("glyph_encoder", tooltip="The text encoder of Load GLM-Image."),
                sockets.Plan.Input("plan", tooltip="The plan to render, with its prompts and references."),
                io.Combo.Input(
                    "glyph_mode",
                    options=MODES,
                    default="prompt_order",
                    tooltip="Which texts are rendered. reference: quoted texts exactly as the original code finds them "
                    "(an apostrophe opens a quote). prompt_order: all quote styles, apostrophes understood; lines of "
                    "glyph_texts win. list: the lines of glyph_texts.",
                ),
                io.String.Input(
                    "glyph_texts",
                    multiline=True,
                    default="",
                    tooltip="Texts to render, one a line, in place of the prompt's; not read in mode reference.",
                ),
                io.String.Input(
                    "negative_texts",
                    multiline=True,
                    default="",
                    tooltip="Texts to steer away from, one a line; normally empty.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Needed for plans with reference images, which the decoder sees too.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, glyph_encoder, plan, glyph_mode, glyph_texts, negative_texts, vae=None) -> io.NodeOutput:
        references = encode_references(vae, plan)
        texts = texts_of(plan, glyph_mode, glyph_texts)
        named = glyph_mode == REFERENCE
        made = conditionings(glyph_encoder, plan, texts, lines(negative_texts), references, named)
        return io.NodeOutput(*made, ui=show(report(plan, texts, glyph_mode, glyph_texts), cls.hidden.unique_id))
