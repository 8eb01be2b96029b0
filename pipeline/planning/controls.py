"""What a caller imposes on a plan: tokens that are forced, and tokens that are made likelier.

Shapes: B images, N tokens to plan, V codebook size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import InputError

FREE = -1  # stands where no token is forced


@dataclass(frozen=True)
class GridControl:
    """What a caller imposes on one grid; each tensor is (h*w,) for all images or (B, h*w).

    `forced` int64 replaces the sampled token where the boolean `forced_mask` is True. `bias` float32 is added, before
    temperature, to the logit of the one token of a position that `biased` int64 names.
    """

    forced: torch.Tensor | None = None
    forced_mask: torch.Tensor | None = None
    biased: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class Steering(NamedTuple):
    """Controls of all grids: `forced` (B, N) ids or `FREE`; `biased` (B, N) ids and `bias` (B, N); None if unused."""

    forced: torch.Tensor | None = None
    biased: torch.Tensor | None = None
    bias: torch.Tensor | None = None


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
    """Refuse controls of a grid that the plan lacks, and tokens of another number or codebook."""
    for name, control in controls.items():
        if name not in grids:
            raise InputError(f"there is no {name!r} grid to control in this plan; it has {', '.join(grids)}")
        _check_pair("forced", name, control.forced, control.forced_mask, len(grids[name]), codebook)
        _check_pair("biased", name, control.biased, control.bias, len(grids[name]), codebook)


def _check_pair(kind: str, name: str, ids, weights, count: int, codebook: int) -> None:
    """Ids with their mask, or with the amounts that their logits are raised by."""
    if (ids is None) != (weights is None):
        raise InputError(f"{kind} tokens of the {name} grid need both the tokens and their {_partner(kind)}")
    if ids is None:
        return
    if ids.shape[-1] != count or ids.shape != weights.shape:
        raise InputError(f"{kind} tokens of the {name} grid must number {count}, and their {_partner(kind)} too")
    used = ids[weights != 0]
    if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < codebook:
        raise InputError(f"{kind} tokens of the {name} grid lie outside the codebook of {codebook}")


def _partner(kind: str) -> str:
    return {"forced": "mask", "biased": "bias"}[kind]


def steering(controls: dict[str, GridControl], grids: dict[str, range], batch: int, total: int) -> Steering:
    """Checked controls of each grid -> those of the whole plan, on the CPU."""
    forced = torch.full((batch, total), FREE)
    biased, bias = torch.zeros(batch, total, dtype=torch.long), torch.zeros(batch, total)
    for name, control in controls.items():
        span = slice(grids[name].start, grids[name].stop)
        if control.forced is not None:
            forced[:, span] = torch.where(control.forced_mask, control.forced, FREE).cpu()
        if control.biased is not None:
            biased[:, span] = torch.where(control.bias != 0, control.biased, 0).cpu()
            bias[:, span] = control.bias.cpu()
    any_forced = any(control.forced is not None for control in controls.values())
    any_biased = any(control.biased is not None for control in controls.values())
    return Steering(forced if any_forced else None, biased if any_biased else None, bias if any_biased else None)


def add_bias(logits: torch.Tensor, ids: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """(..., V) logits with amounts (..., 1) added to those of ids (..., 1)."""
    return logits.scatter(-1, ids, logits.gather(-1, ids) + amounts)
