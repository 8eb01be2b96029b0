"""What one run of the diffusion transformer computes once: projected texts and plan, rotary tables, masks, modulations,
the reference KV cache, and the first-block cache.

Shapes: B batch, L glyph tokens, N image tokens (patches), H heads, D head dim, C = H*D channels, h w patch grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F

THETA = 10000.0


@dataclass(frozen=True)
class ReferenceCache:
    """Keys and values of reference images, a (B, H, tokens, D) pair a layer; B is 1 where all rows share them.

    `mask` is boolean (B, tokens), False where a row has no token; None when every row has all.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values))

    @property
    def shown(self) -> torch.Tensor:
        """`mask`, spelled out when it is None."""
        keys = self.keys[0]
        return keys.new_ones(keys.shape[0], self.tokens, dtype=torch.bool) if self.mask is None else self.mask

    @classmethod
    def join(cls, caches: list["ReferenceCache"]) -> "ReferenceCache":
        """Several references of the same rows, one after the other; takes them layer by layer, and leaves them empty,
        so that no more than one layer exists twice.
        """
        if len(caches) == 1:
            return caches[0]
        shown = None if all(c.mask is None for c in caches) else torch.cat([c.shown for c in caches], dim=1)
        keys, values = (
            [torch.cat([own.pop(0) for own in parts], dim=2) for _ in range(len(parts[0]))]
            for parts in ([c.keys for c in caches], [c.values for c in caches])
        )
        return cls(keys, values, shown)


class Patches(Protocol):
    """What may run in place of, or after, the transformer's blocks and their attention."""

    def block(self, layer: int, layers: int, run: Callable, glyphs, image, modulation):
        """`run(glyphs, image, modulation)` is block `layer` of `layers` -> the glyph and image tokens after it."""

    def attention(self, q, k, v, mask, plain: Callable) -> torch.Tensor:
        """`plain(q, k, v, mask)` is the attention of this device -> (B, H, L, D)."""


@dataclass(frozen=True)
class Context:
    """What one run of the decoder keeps between steps; made by `Dit.prepare`.

    `glyphs` (B, L, C) and `prior` (B or 1, N or 1, C) are projected; `cos`, `sin` are float32 (L + N, D), the
    identity for glyph tokens; `mask` is boolean and broadcasts to (B, 1, L + N, keys), None when all see all.
    """

    glyphs: torch.Tensor
    prior: torch.Tensor
    grid: tuple[int, int]
    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None = None
    glyph_mask: torch.Tensor | None = None
    glyph_visible: torch.Tensor | None = None
    references: ReferenceCache | None = None
    patches: Patches | None = None

    def reference(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self.references and (self.references.keys[layer], self.references.values[layer])


@dataclass(frozen=True)
class Modulations:
    """Scales, shifts and gates of every layer for S timesteps: `layers[i]` (S, 12, C), `out` (S, 2, C)."""

    layers: list[torch.Tensor]
    out: torch.Tensor

    def __getitem__(self, step: int) -> "Modulations":
        """The row of one step, shared by the whole batch."""
        return Modulations([t[step : step + 1] for t in self.layers], self.out[step : step + 1])


@dataclass
class FirstBlockCache:
    """First-block cache (FBCache) of one pass: repeats the later blocks' change while the first block's barely moves.

    `threshold` bounds the mean absolute change of the first block's residual relative to its size. Inexact, and
    reads one number back from the device a step.
    """

    threshold: float
    first: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    def may_reuse(self, residual: torch.Tensor) -> bool:
        if self.rest is None:
            return False
        moved = (residual - self.first).abs().mean() / self.first.abs().mean()
        return bool(moved < self.threshold)


def join_guidance(conditional: Context, unconditional: Context) -> Context:
    """Both passes of guidance as one batch, conditional rows first; shorter glyphs are padded and masked.

    References are shown to the conditional rows only.
    """
    assert unconditional.references is None, "the unconditional pass never sees references"
    longest = max(conditional.glyphs.shape[1], unconditional.glyphs.shape[1])
    longer = conditional if conditional.glyphs.shape[1] == longest else unconditional
    halves = [_pad_glyphs(context, longest) for context in (conditional, unconditional)]
    batch, tokens = conditional.glyphs.shape[0], conditional.grid[0] * conditional.grid[1]
    joined = Context(
        torch.cat([half.glyphs for half in halves]),
        torch.cat([half.prior.expand(batch, tokens, -1) for half in halves]),
        conditional.grid,
        longer.cos,
        longer.sin,
        glyph_mask=_stack_masks([half.glyph_mask for half in halves], batch),
        glyph_visible=_stack_masks([half.glyph_visible for half in halves], batch),
        references=_hide_from_second_half(conditional.references, batch),
    )
    return replace(joined, mask=joint_mask(joined))


def _pad_glyphs(context: Context, longest: int) -> Context:
    """Pad on the left, as glyph batches are."""
    batch, length, _ = context.glyphs.shape
    missing = longest - length
    if not missing:
        return context
    mask, visible = context.glyph_mask, context.glyph_visible
    if mask is None:
        mask = context.glyphs.new_ones(batch, length, dtype=torch.bool)
    return replace(
        context,
        glyphs=F.pad(context.glyphs, (0, 0, missing, 0)),
        glyph_mask=F.pad(mask, (missing, 0)),
        glyph_visible=None if visible is None else F.pad(visible, (missing, 0)),
    )


def _stack_masks(masks: list[torch.Tensor | None], batch: int) -> torch.Tensor | None:
    """(B or 1, ...) masks of both halves -> (2B, ...); an absent one hides nothing."""
    given = next((mask for mask in masks if mask is not None), None)
    if given is None:
        return None
    filled = [torch.ones_like(given) if mask is None else mask for mask in masks]
    return torch.cat([mask.expand(batch, *mask.shape[1:]) for mask in filled])


def _hide_from_second_half(references: ReferenceCache | None, batch: int) -> ReferenceCache | None:
    if references is None:
        return None
    shown = references.shown.expand(batch, -1)
    mask = torch.cat((shown, torch.zeros_like(shown)))
    if references.keys[0].shape[0] == 1:
        return replace(references, mask=mask)
    keys, values = ([t.repeat(2, 1, 1, 1) for t in layers] for layers in (references.keys, references.values))
    return ReferenceCache(keys, values, mask)


def joint_mask(context: Context) -> torch.Tensor | None:
    """What each token may see among (references, glyphs, image), or None when everything."""
    references, visible = context.references, context.glyph_visible
    reference_mask = None if references is None else references.mask
    if context.glyph_mask is None and visible is None and reference_mask is None:
        return None
    batch, length = context.glyphs.shape[:2]
    image, before = context.grid[0] * context.grid[1], 0 if references is None else references.tokens
    mask = context.glyphs.new_ones(batch, 1, 1, before + length + image, dtype=torch.bool)
    if reference_mask is not None:
        mask[:, 0, 0, :before] = reference_mask
    if context.glyph_mask is not None:
        mask[:, 0, 0, before : before + length] = context.glyph_mask
    if visible is None:
        return mask
    mask = mask.repeat(1, 1, length + image, 1)
    mask[:, 0, length:, before : before + length] &= visible
    return mask


def rotary_tables(head_dim: int, grid: tuple[int, int], glyph_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 cos and sin (glyph_tokens + h*w, head_dim) on the CPU; glyph tokens have no position, so do not turn.

    Of each half of the channels, the first half turns with the row, the second with the column.
    """
    (h, w), axis = grid, head_dim // 2
    frequency = 1.0 / THETA ** (torch.arange(0, axis, 2, dtype=torch.float32) / axis)
    rows = torch.outer(torch.arange(h), frequency)[:, None].expand(h, w, -1)
    columns = torch.outer(torch.arange(w), frequency)[None].expand(h, w, -1)
    angles = torch.cat((rows, columns, rows, columns), dim=-1).reshape(h * w, head_dim)
    angles = F.pad(angles, (0, 0, glyph_tokens, 0))
    return angles.cos(), angles.sin()
