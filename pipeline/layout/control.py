"""Layout control without training: plan forcing, regional attention masks and held latents.

Each works alone, and off leaves every number untouched:
- plan forcing: the sketch's own tokens are favoured (bias) or imposed (force) inside the boxes of either grid;
- regional attention: patches of a box see only their own string's glyph tokens, which have no position of their own;
- held latents: boxes follow the sketch's noised latent until the noise falls to a chosen level.
`replan_controls` keeps a plan and samples it again only inside boxes.
Shapes: h w token grid (32 px), V codebook size, L glyph tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from ..errors import InputError
from ..images import to_rgb
from ..models.config import ProcessorConfig
from ..models.planner import Planner
from ..plan import Plan
from ..planning.controls import GridControl
from ..planning.references import vit_pixels
from ..text import MAX_TEXT, utf8
from .boxes import box_weights, inside_boxes
from .regions import Layout

PLAN_MODES = ("off", "bias", "force")
GRIDS = ("both", "preview", "full")
FORCE_FROM = 0.5  # weight from which a token near a soft edge is imposed


@dataclass(frozen=True)
class PlanControl:
    """How the sketch's tokens act on planning.

    `strength` is added to a sketch token's logit ("bias" only; 0 is off, about 5 beats most doubts, 20 is as good as
    force). `falloff`, in tokens, weakens the edge of a box inwards. `grids` says which grids are controlled.
    """

    mode: str = "off"
    strength: float = 6.0
    grids: str = "both"
    falloff: float = 0.0

    def __post_init__(self):
        if self.mode not in PLAN_MODES:
            raise InputError(f"plan control mode {self.mode!r}; use {', '.join(PLAN_MODES)}")
        if self.grids not in GRIDS:
            raise InputError(f"controlled grids {self.grids!r}; use {', '.join(GRIDS)}")
        if not 0 <= self.strength <= 1000 or not 0 <= self.falloff <= 1000:
            raise InputError(f"strength {self.strength} and falloff {self.falloff} must lie in 0..1000")

    @property
    def active(self) -> bool:
        return self.mode == "force" or (self.mode == "bias" and self.strength > 0)


@torch.no_grad()
def sketch_tokens(
    planner: Planner,
    sketch: Image.Image,
    grids: dict[str, tuple[int, int]],
    config: ProcessorConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """A sketch -> its tokens on each grid, int64 (h*w,) on the CPU, by the vision tokenizer.

    The ViT sees 16 px for a token, as it sees reference images.
    """
    pixels = {name: _vit_pixels(sketch, grid, config).to(device, dtype) for name, grid in grids.items()}
    return {name: planner.tokenize_image(picture).cpu() for name, picture in pixels.items()}


def _vit_pixels(image: Image.Image, grid: tuple[int, int], config: ProcessorConfig) -> torch.Tensor:
    """Float32 (3, 16h, 16w), normalised as references are."""
    size = (grid[1] * config.patch_size, grid[0] * config.patch_size)
    return vit_pixels(to_rgb(image).resize(size, Image.Resampling(config.resample)), config)


def plan_controls(
    control: PlanControl,
    layout: Layout,
    tokens: dict[str, torch.Tensor],
    grids: dict[str, tuple[int, int]],
) -> dict[str, GridControl]:
    """Controls for `generate.decode` from the sketch's tokens on each grid; none when it is off."""
    if not control.active:
        return {}
    chosen = [name for name in grids if control.grids in ("both", name)]
    if not chosen:
        raise InputError(f"this plan has no {control.grids} grid to control (plans with references have no preview)")
    controls = {}
    for name in chosen:
        weights = box_weights(layout, grids[name], control.falloff).amax(dim=0).flatten()
        if control.mode == "force":
            controls[name] = _forced(tokens[name], weights)
        else:
            controls[name] = _biased(tokens[name], control.strength * weights)
    return controls


def _forced(tokens: torch.Tensor, weights: torch.Tensor) -> GridControl:
    mask = weights >= FORCE_FROM
    return GridControl(forced=torch.where(mask, tokens, 0), forced_mask=mask)


def _biased(tokens: torch.Tensor, weights: torch.Tensor) -> GridControl:
    return GridControl(biased=tokens, bias=weights)


def replan_controls(plan: Plan, layout: Layout) -> dict[str, GridControl]:
    """Controls that keep every token of a plan outside the layout's boxes, on both grids."""
    kept = {"full": (plan.prior_token_ids_d32, plan.grid)}
    if plan.preview_token_ids is not None:
        kept["preview"] = (plan.preview_token_ids, plan.preview_grid)
    controls = {}
    for name, (ids, grid) in kept.items():
        outside = ~inside_boxes(layout, grid).any(dim=0).flatten()
        controls[name] = GridControl(forced=ids, forced_mask=outside.expand_as(ids))
    return controls


def merge_controls(kept: dict[str, GridControl], sketched: dict[str, GridControl]) -> dict[str, GridControl]:
    """Both at once: tokens kept outside boxes, tokens favoured or imposed inside them."""
    merged = dict(kept)
    for name, control in sketched.items():
        base = merged.get(name, GridControl())
        forced, mask = base.forced, base.forced_mask
        if control.forced is not None and forced is not None:
            forced = torch.where(mask, forced, control.forced)
            mask = mask | control.forced_mask
        elif control.forced is not None:
            forced, mask = control.forced, control.forced_mask
        biased = base if control.biased is None else control
        merged[name] = GridControl(forced, mask, biased.biased, biased.bias)
    return merged


def regional_attention_mask(
    layout: Layout, texts: list[str], patches: tuple[int, int], elsewhere: bool = True
) -> torch.Tensor:
    """Boolean (1, h*w, L): which glyph tokens a patch of the decoder's (h, w) grid may see.

    Inside boxes: the tokens of the box's own string (of all their strings where boxes overlap). Outside: all, or with
    `elsewhere=False` none. `texts` are the strings in the order the glyph encoder gets them.
    """
    spans = _glyph_spans(texts)
    inside = inside_boxes(layout, patches).flatten(1)
    visible = torch.zeros(inside.shape[1], spans[-1].stop, dtype=torch.bool)
    for text, where in zip(_matched_texts(layout, texts), inside):
        visible[where, spans[text].start : spans[text].stop] = True
    if elsewhere:
        visible[~inside.any(dim=0)] = True
    return visible[None]


def _glyph_spans(texts: list[str]) -> list[range]:
    """Where each string's tokens lie in what the glyph encoder returns: a pad for even counts, bytes, an end."""
    spans, start = [], 0
    for text in texts or [""]:
        length = (len(texts) + 1) % 2 + min(len(utf8(text)), MAX_TEXT - 1) + 1
        spans.append(range(start, start + length))
        start += length
    return spans


def _matched_texts(layout: Layout, texts: list[str]) -> list[int]:
    """For each region the index of its string in `texts`; equal strings are taken in reading order."""
    left = list(enumerate(texts))
    found = [0] * len(layout)
    for index in layout.reading_order():
        line = layout.regions[index].line
        match = next((pair for pair in left if pair[1] == line), None)
        if match is None:
            raise InputError(
                f'region {index + 1}: "{line[:40]}" is not among the glyph texts {texts[:5]}; '
                "give the layout's glyph texts to the glyph encoder"
            )
        left.remove(match)
        found[index] = match[0]
    return found


def latent_holder(
    sketch_latents: torch.Tensor, noise: torch.Tensor, layout: Layout, level: float
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """`hold(latents, sigma)` -> latents whose boxes follow the sketch while sigma is above `level` (0..1).

    `sketch_latents` (1 or B, 16, H/8, W/8) normalised, `noise` what the run started from. Level 1 never holds.
    """
    if not 0 <= level <= 1:
        raise InputError(f"noise level {level} is out of range; use 0 (keep the sketch) to 1 (off)")
    inside = inside_boxes(layout, tuple(sketch_latents.shape[-2:])).any(dim=0)

    def hold(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        if sigma <= level:
            return latents
        mask = inside.to(latents.device)
        noised = sigma * noise.to(latents) + (1 - sigma) * sketch_latents.to(latents)
        return torch.where(mask, noised, latents)

    return hold
