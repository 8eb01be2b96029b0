"""A layout with the strength at which planner, attention and latents follow it, for one image or for each of a batch.

Shapes: B images, h w decoder patches, L glyph tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..geometry import PATCH
from ..planning.controls import GridControl
from ..planning.make_plan import PreparedPlan
from .check import MAX_OVERLAP, check, inside_page
from .control import PlanControl, latent_holder, plan_controls, regional_attention_mask, sketch_tokens
from .regions import Layout
from .sketch import render

Hold = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class LayoutControl:
    """How strongly each stage follows `layout`; the defaults are those of the nodes.

    `plan`: tokens that planning favours or imposes. `attention`: share of the steps in which a box sees only its own
    text, 0 is off; `text_elsewhere` lets the rest of the image see all texts meanwhile. `sketch_level`: noise level
    down to which boxes follow the sketch, 1 is off. `sketch`: an image to follow in place of the layout's own.
    """

    layout: Layout
    plan: PlanControl = PlanControl("bias")
    attention: float = 0.3
    text_elsewhere: bool = True
    sketch_level: float = 1.0
    sketch: Image.Image | None = None

    def __post_init__(self):
        for name in ("attention", "sketch_level"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(f"layout {name.replace('_', ' ')} {value!r} is not accepted; use a number from 0 to 1")

    def checked(self, height: int, width: int, max_overlap: float = MAX_OVERLAP) -> "LayoutControl":
        """The same for a page of these pixels; boxes or texts that it cannot hold are an `InputError`."""
        check(self.layout, height, width, max_overlap)
        return replace(self, layout=inside_page(self.layout))

    def picture(self, height: int, width: int) -> Image.Image:
        """The sketch at these pixels."""
        if self.sketch is None:
            return render(self.layout, height, width)
        return self.sketch.resize((width, height))


Layouts = Layout | LayoutControl | Sequence[Layout | LayoutControl]


def control_rows(given: Layouts | None, rows: int, height: int, width: int) -> list[LayoutControl]:
    """A layout for all images or one for each -> a checked control for each; none for None."""
    if given is None:
        return []
    single = isinstance(given, (Layout, LayoutControl))
    each = [given] * rows if single else list(given)
    if len(each) != rows or not all(isinstance(one, (Layout, LayoutControl)) for one in each):
        raise InputError(f"layout must be a Layout or a LayoutControl, or a list of {rows}, one for each image")
    controls = [one if isinstance(one, LayoutControl) else LayoutControl(one) for one in each]
    if len({(one.plan, one.attention, one.text_elsewhere, one.sketch_level) for one in controls}) > 1:
        raise InputError("the layouts of a batch must be followed equally; give all the same plan, attention and level")
    return [controls[0].checked(height, width)] * rows if single else [c.checked(height, width) for c in controls]


def plan_controls_for(
    rows: list[LayoutControl], planner, prepared: PreparedPlan, processor, device: torch.device, dtype: torch.dtype
) -> dict[str, GridControl]:
    """Controls of every grid for `make_plan`; the planner's vision tokenizer reads the sketches."""
    if not rows or not rows[0].plan.active:
        return {}
    request = prepared.request
    made: dict[int, dict[str, GridControl]] = {}
    for one in rows:
        if id(one) not in made:
            picture = one.picture(request.height, request.width)
            tokens = sketch_tokens(planner, picture, prepared.grids, processor, device, dtype)
            made[id(one)] = plan_controls(one.plan, one.layout, tokens, prepared.grids)
    if len(made) == 1:
        return made[id(rows[0])]
    return {name: _stacked([made[id(one)][name] for one in rows]) for name in made[id(rows[0])]}


def _stacked(controls: list[GridControl]) -> GridControl:
    """Controls of one grid for each image -> one control of the batch."""
    if controls[0].forced is not None:
        forced, masks = zip(*((control.forced, control.forced_mask) for control in controls))
        return GridControl(forced=torch.stack(forced), forced_mask=torch.stack(masks))
    biased, bias = zip(*((control.biased, control.bias) for control in controls))
    return GridControl(biased=torch.stack(biased), bias=torch.stack(bias))


def attention_mask_for(rows: list[LayoutControl], texts: list[list[str]], height: int, width: int):
    """Boolean (B or 1, h*w, L), padded on the left as glyph embeddings are; None when attention is left alone."""
    if not rows or rows[0].attention == 0:
        return None
    patches = (height // PATCH, width // PATCH)
    masks = [regional_attention_mask(one.layout, row, patches, one.text_elsewhere) for one, row in zip(rows, texts)]
    longest = max(mask.shape[-1] for mask in masks)
    return torch.cat([torch.nn.functional.pad(mask, (longest - mask.shape[-1], 0)) for mask in masks])


def hold_for(
    rows: list[LayoutControl],
    encode: Callable[[torch.Tensor], torch.Tensor],
    noise: torch.Tensor,
    height: int,
    width: int,
) -> Hold | None:
    """What keeps boxes at the sketch for `denoise_steps`; `encode` is (B, H, W, 3) in 0..1 -> normalised latents."""
    if not rows or rows[0].sketch_level == 1:
        return None
    pictures = [np.array(one.picture(height, width).convert("RGB")) for one in rows]
    clean = encode(torch.from_numpy(np.stack(pictures)) / 255)
    holders = [
        latent_holder(clean[k, None], noise[k, None], one.layout, one.sketch_level) for k, one in enumerate(rows)
    ]

    def hold(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.cat([each(latents[k, None], sigma) for k, each in enumerate(holders)])

    return hold
