"""What a caller imposes on a plan: tokens that are forced, logits that are raised or lowered.

Shapes: B images, N tokens to plan, V codebook size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass(frozen=True)
class GridControl:
    """What a caller imposes on one grid; rows may be left out of any tensor to mean all images.

    `logit_bias`: (h*w, V) or (B, h*w, V) added to the logits before temperature, or a function from a position in
    the grid to (V,) or (B, V) or None. `forced` int64 (h*w,) or (B, h*w) replaces the sampled token where
    `forced_mask`, bool of the same shape, is True.
    """

    logit_bias: torch.Tensor | Callable[[int], torch.Tensor | None] | None = None
    forced: torch.Tensor | None = None
    forced_mask: torch.Tensor | None = None

    def bias_at(self, position: int) -> torch.Tensor | None:
        if self.logit_bias is None or callable(self.logit_bias):
            return self.logit_bias and self.logit_bias(position)
        return self.logit_bias[..., position, :]


def grid_spans(grids: Sequence[tuple[int, int]]) -> dict[str, range]:
    """Grids in planning order -> where the tokens of "preview" (if there is one) and "full" lie."""
    spans, start = {}, 0
    for name, (h, w) in zip(("preview", "full")[-len(grids) :], grids):
        spans[name] = range(start, start + h * w)
        start += h * w
    return spans


def grid_at(grids: dict[str, range], k: int) -> tuple[str, range]:
    return next((name, span) for name, span in grids.items() if k in span)


def check_controls(controls: dict[str, GridControl], grids: dict[str, range], codebook: int) -> None:
    """Refuse controls of a grid that the plan lacks, and forced tokens of another number or codebook."""
    for name, control in controls.items():
        if name not in grids:
            raise InputError(f"there is no {name!r} grid to control in this plan; it has {', '.join(grids)}")
        if (control.forced is None) != (control.forced_mask is None):
            raise InputError(f"forced tokens of the {name} grid need both the tokens and their mask")
        if control.forced is None:
            continue
        if control.forced.shape[-1] != len(grids[name]) or control.forced.shape != control.forced_mask.shape:
            raise InputError(f"forced tokens of the {name} grid must number {len(grids[name])}, and their mask too")
        used = control.forced[control.forced_mask]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < codebook:
            raise InputError(f"forced tokens of the {name} grid lie outside the codebook of {codebook}")


def forced_tokens(controls: dict[str, GridControl], grids: dict[str, range], rows: int, total: int):
    """The forced tokens and their mask over all grids, (B, N) each, or nothing."""
    forcing = {name: control for name, control in controls.items() if control.forced is not None}
    if not forcing:
        return ()
    tokens = torch.zeros(rows, total, dtype=torch.long)
    mask = torch.zeros(rows, total, dtype=torch.bool)
    for name, control in forcing.items():
        span = slice(grids[name].start, grids[name].stop)
        tokens[:, span], mask[:, span] = control.forced.cpu(), control.forced_mask.cpu()
    return tokens, mask
