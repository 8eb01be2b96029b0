"""The planner's lesson: the caption as a prompt, then the tokens of the preview grid, then those of the full grid.

Prompts, positions and the order of tokens come from `planning/prompt.py`, as when a plan is made.
Shapes: B images, L prompt tokens, N tokens of both grids, H hidden size.
"""

from collections.abc import Sequence

import torch

from ...pipeline.geometry import preview_grid
from ...pipeline.models.planner import Planner
from ...pipeline.planning.prefill import prompt_mask
from ...pipeline.planning.prompt import PromptEncoder, collate
from .layers import head_loss, run_language_model
from .prepared import Item


def strip(planner: Planner) -> None:
    """Free what neither a step nor a sample needs, and let adapters stand at q, k and v apart."""
    planner.drop_vision()
    for layer in planner.model.language_model.layers:
        layer.self_attn.fused = None


class PlannerLoss:
    """The loss of a batch of items of one size. Each grid counts as much as the other, however many tokens it has:
    the preview decides what is where, and has fewer.
    """

    def __init__(self, planner: Planner, encoder: PromptEncoder, checkpointing: bool = True, keep: int = 0):
        self.planner, self.encoder, self.checkpointing, self.keep = planner, encoder, checkpointing, keep

    def check(self, items: Sequence[Item]) -> None:
        """Refuse captions that no prompt can be made of, or that the planner has no room for."""
        for item in items:
            self.encoder.encode(item.caption, item.grid, preview_grid(*item.grid))

    def __call__(self, items: Sequence[Item], device: torch.device, _generator) -> dict[str, torch.Tensor]:
        """ "loss", and each grid's own loss and share of tokens that the planner would choose."""
        ids, positions, mask, targets, preview = self.sequence(items)
        planner, planned = self.planner, targets.shape[1]
        tables = planner.rope_tables(positions.to(device))
        embedded = planner.embed(ids, device)
        mask = None if mask is None else mask.to(device)
        language = planner.model.language_model
        hidden = run_language_model(language, embedded, tables, mask, planned, self.checkpointing, self.keep)
        weights = torch.full((planned,), 0.5 / (planned - preview))
        weights[:preview] = 0.5 / preview
        losses, hits = head_loss(
            hidden.flatten(0, 1), planner.lm_head.weight, targets.flatten().to(device),
            weights.repeat(len(items)).to(device) / len(items),
        )  # fmt: skip
        loss, losses, hits = losses[0], losses[1].view(-1, planned), hits.view(-1, planned)
        return {
            "loss": loss,
            "preview": losses[:, :preview].mean(),
            "full": losses[:, preview:].mean(),
            "preview_right": hits[:, :preview].mean(),
            "full_right": hits[:, preview:].mean(),
        }

    def sequence(self, items: Sequence[Item]):
        """ids (B, T), positions (3, B, T), mask (B, 1, T, T) or None for a causal one, targets (B, N), and how many
        of them are the preview's; T is L + N - 1.
        """
        grid = items[0].grid
        small = preview_grid(*grid)
        config = self.planner.config
        batch = collate([self.encoder.encode(i.caption, grid, small) for i in items], grid, small, config)
        tokens = [item.tensors() for item in items]
        targets = torch.stack([torch.cat((t["preview"], t["full"])) for t in tokens])
        ids = torch.cat((batch.ids, targets[:, :-1]), 1)
        positions = torch.cat((batch.positions, batch.decode_positions[..., :-1]), 2)
        if not batch.padded:
            return ids, positions, None, targets, small[0] * small[1]
        present = torch.nn.functional.pad(batch.mask, (0, targets.shape[1] - 1), value=True)
        return ids, positions, prompt_mask(present, 0, ids.shape[1]), targets, small[0] * small[1]
