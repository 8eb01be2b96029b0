"""The decoder's lesson: flow matching from noise to an image's latents, given its own tokens and the caption's texts.

Noise levels are those of the checkpoint's schedule for the image's size; the decoder is told the unshifted time.
Shapes: B images, h w latents.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...pipeline.denoising.scheduler import shift_mu
from ...pipeline.geometry import LATENT
from ...pipeline.models.config import SchedulerConfig
from ...pipeline.models.glyph_encoder import pad_glyphs
from ...pipeline.models.transformer import Dit
from .layers import recomputed
from .prepared import Item


class DecoderLoss:
    """The loss of a batch of items of one size. `nothing` (L, C) is the embedding of no text, which an image in a share
    `drop` gets without a plan, as the unconditional pass of guidance does. All blocks but `keep` are recomputed.
    """

    def __init__(
        self,
        dit: Dit,
        scheduler: SchedulerConfig,
        nothing: torch.Tensor,
        drop: float,
        checkpointing=True,
        keep: int = 0,
    ):
        self.dit, self.scheduler, self.nothing, self.drop = dit, scheduler, nothing, drop
        if checkpointing:
            for block in dit.transformer_blocks[: max(0, len(dit.transformer_blocks) - keep)]:
                block.forward = _Recomputed(block.forward)

    def check(self, items: Sequence[Item]) -> None:
        """Every item that could be prepared can be learnt."""

    def __call__(
        self, items: Sequence[Item], device: torch.device, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        tensors = [item.tensors() for item in items]
        latents = torch.stack([t["latents"] for t in tensors])
        noise = torch.randn(latents.shape, generator=generator)
        sigma, time = self.noise_levels(len(items), tensors[0]["prior"].numel(), generator)
        dropped = torch.rand(len(items), generator=generator) < self.drop
        glyphs = [self.nothing if gone else t["glyphs"] for gone, t in zip(dropped.tolist(), tensors)]
        embeds, mask = pad_glyphs([rows[None] for rows in glyphs])
        prior = torch.stack([t["prior"] for t in tensors])
        noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
        size = torch.tensor([[float(LATENT * side) for side in latents.shape[-2:]]])
        dtype = self.dit.proj_out.weight.dtype
        velocity = self.dit(
            noisy.to(device, dtype),
            embeds.to(device, dtype),
            prior.to(device),
            dropped[:, None].expand_as(prior).to(device),
            time.to(device),
            size.to(device),
            torch.zeros_like(size).to(device),
            glyph_mask=None if mask is None else mask.to(device),
        )
        return {"loss": F.mse_loss(velocity.float(), (noise - latents).to(device))}

    def noise_levels(self, count: int, patches: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) sigmas and the decoder's times for images of `patches` patches, every time as likely as another."""
        total = self.scheduler.num_train_timesteps
        time = torch.randint(1, total + 1, (count,), generator=generator).float()
        mu = shift_mu(self.scheduler, patches)
        return mu / (mu + (total / time - 1)), time - 1


class _Recomputed:
    """A block's forward pass, of which only its inputs are kept."""

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *inputs):
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        return recomputed(self.forward, *inputs)
