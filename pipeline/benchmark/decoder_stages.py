"""The decoder's side: glyph encoder, diffusion steps, VAE.

Operations are counted on modules without memory; bytes are those of the weights that a call must read.
Shapes: B batch, L glyph tokens, N image tokens (patches).
"""

from dataclasses import replace

import torch

from ..denoising.cfg import CfgPasses, guided_velocity
from ..geometry import latent_size, patch_count
from ..loading.checkpoint import DECODER, GLYPH, VAE
from ..models.transformer import Dit
from ..models.transformer_context import Context
from . import peers
from .case import GLYPH_BYTES, GUIDANCE, META, STEPS, Bench, Case, Stage
from .models import weight_bytes
from .timing import Call, count_flops


def glyph_encoder(bench: Bench, case: Case) -> Stage:
    """One text of `GLYPH_BYTES`."""
    ids = torch.full((1, GLYPH_BYTES), 100, device=bench.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    meta = bench.meta.glyph_encoder

    def peer() -> Call:
        model = bench.peer(GLYPH)
        return lambda: model(input_ids=ids, attention_mask=mask)

    return Stage(
        unit="bytes",
        amount=GLYPH_BYTES,
        flops=count_flops(lambda: meta(ids.to(META), mask.to(META))),
        nbytes=weight_bytes(meta.encoder),
        run=lambda: bench.models.glyph_encoder(ids, mask),
        peer=peer,
    )


def decoder_prepare(bench: Bench, case: Case) -> Stage:
    """What a run computes once: modulations of all steps, projected glyphs and plan, of both passes."""

    def work(dit: Dit, device: torch.device):
        return modulations(dit, bench, case, device), contexts(dit, bench, case, device)

    return Stage(
        unit="steps",
        amount=STEPS,
        flops=count_flops(lambda: work(bench.meta.transformer, META)),
        nbytes=weight_bytes(bench.meta.transformer) - block_bytes(bench.meta.transformer),
        run=lambda: work(bench.models.transformer, bench.device),
    )


def decoder_step(bench: Bench, case: Case) -> Stage:
    return _decoder(bench, case, guided=False)


def decoder_guided(bench: Bench, case: Case) -> Stage:
    """Conditional and unconditional pass, one after the other."""
    return _decoder(bench, case, guided=True)


def decoder_joined(bench: Bench, case: Case) -> Stage:
    """Both passes as one batch."""
    return _decoder(bench, case, guided=True, joined=True)


def decoder_reference(bench: Bench, case: Case) -> Stage:
    """Both passes, the conditional one seeing a reference image of the size that is drawn."""
    return _decoder(bench, case, guided=True, reference=True)


def _decoder(bench: Bench, case: Case, guided: bool, joined: bool = False, reference: bool = False) -> Stage:
    def prepare(dit: Dit, device: torch.device):
        shown, empty = contexts(dit, bench, case, device, reference)
        table, latents = modulations(dit, bench, case, device)[0], _latents(bench, case).to(device)
        passes = CfgPasses(shown, empty if guided else None, GUIDANCE, batched=joined)
        return dit, latents, table, passes

    meta, calls = bench.meta.transformer, 2 if guided and not joined else 1
    with torch.no_grad():
        counted = prepare(meta, META)
    return Stage(
        unit="patches",
        amount=case.batch * patch_count(case.height, case.width),
        flops=count_flops(lambda: guided_velocity(*counted)),
        nbytes=calls * block_bytes(meta),
        prepare=lambda: prepare(bench.models.transformer, bench.device),
        run=lambda prepared: guided_velocity(*prepared),
        peer=lambda: _decoder_peer(bench, case, guided, reference),
    )


def _decoder_peer(bench: Bench, case: Case, guided: bool, reference: bool) -> Call:
    model, given = bench.peer(DECODER), peer_inputs(bench, case, GLYPH_BYTES, drop=False)
    without = peer_inputs(bench, case, 1, drop=True)
    one = replace(case, batch=1)
    caches = peers.reference_caches(model, peer_inputs(bench, one, 0, drop=False)) if reference else None

    def call() -> None:
        peers.velocity(model, given, caches, "read")
        if guided:
            peers.velocity(model, without, caches, "skip")

    return call


def contexts(
    dit: Dit,
    bench: Bench,
    case: Case,
    device: torch.device,
    reference: bool = False,
    ids: torch.Tensor | None = None,
) -> tuple[Context, Context]:
    """Of the conditional pass and of the unconditional one, whose text is empty; `ids` (B, N) are a plan's."""
    ids, grid = _prior(bench, case).to(device) if ids is None else ids, case.patch_grid
    cache = None
    if reference:
        cache = dit.encode_reference(_latents(bench, case)[:1].to(device), ids[:1])
    shown = dit.prepare(_glyphs(bench, case, GLYPH_BYTES).to(device), ids, grid, references=cache)
    return shown, dit.prepare(_glyphs(bench, case, 1).to(device), ids, grid, prior_token_drop=True)


def modulations(dit: Dit, bench: Bench, case: Case, device: torch.device):
    """Of a schedule of `STEPS`."""
    size = torch.tensor([[float(case.height), float(case.width)]], device=device)
    times = torch.linspace(999, 19, STEPS, device=device)
    return dit.modulations(times, size, torch.zeros_like(size), bench.dtypes[DECODER])


def block_bytes(dit: Dit) -> int:
    """Weights that every step reads: of the blocks, but not of their modulations."""
    return sum(weight_bytes(block.attn1, block.ff) for block in dit.transformer_blocks)


def peer_inputs(bench: Bench, case: Case, glyphs: int, drop: bool) -> dict[str, torch.Tensor]:
    """Arguments of diffusers' transformer."""
    ids = _prior(bench, case).to(bench.device)
    size = torch.tensor([[case.height, case.width]] * case.batch, device=bench.device, dtype=torch.float32)
    return {
        "hidden_states": _latents(bench, case),
        "encoder_hidden_states": _glyphs(bench, case, glyphs),
        "prior_token_id": ids,
        "prior_token_drop": torch.full_like(ids, drop, dtype=torch.bool),
        "timestep": torch.full((case.batch,), 999.0, device=bench.device),
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
    }


def _latents(bench: Bench, case: Case) -> torch.Tensor:
    channels = bench.models.configs[DECODER].in_channels
    return bench.random(DECODER, case.batch, channels, *latent_size(case.height, case.width))


def _glyphs(bench: Bench, case: Case, length: int) -> torch.Tensor:
    return bench.random(DECODER, case.batch, length, bench.models.configs[DECODER].text_embed_dim)


def _prior(bench: Bench, case: Case) -> torch.Tensor:
    codebook = bench.models.configs[DECODER].prior_vq_quantizer_codebook_size
    shape = (case.batch, patch_count(case.height, case.width))
    return torch.randint(0, codebook, shape, generator=torch.Generator().manual_seed(0))


def vae_decode(bench: Bench, case: Case) -> Stage:
    return _vae_decode(bench, case, "decode")


def vae_decode_tiled(bench: Bench, case: Case) -> Stage:
    """In slices, for little memory."""
    return _vae_decode(bench, case, "decode_tiled")


def _vae_decode(bench: Bench, case: Case, method: str) -> Stage:
    config, meta = bench.models.configs[VAE], bench.meta.vae
    latents = bench.random(VAE, case.batch, config.latent_channels, *latent_size(case.height, case.width))

    def peer() -> Call:
        model = bench.peer(VAE)
        return lambda: model.decode(latents, return_dict=False)

    return Stage(
        unit="pixels",
        amount=case.batch * case.height * case.width,
        flops=count_flops(lambda: meta.decode(latents.to(META))),
        nbytes=weight_bytes(meta.decoder),
        run=lambda: getattr(bench.models.vae, method)(latents),
        peer=peer,
    )


def vae_encode(bench: Bench, case: Case) -> Stage:
    """A reference image."""
    config, meta = bench.models.configs[VAE], bench.meta.vae
    pixels = bench.random(VAE, 1, config.in_channels, case.height, case.width)

    def peer() -> Call:
        model = bench.peer(VAE)
        return lambda: model.encode(pixels).latent_dist.mode()

    return Stage(
        unit="pixels",
        amount=case.height * case.width,
        flops=count_flops(lambda: meta.encode(pixels.to(META))),
        nbytes=weight_bytes(meta.encoder),
        run=lambda: bench.models.vae.encode(pixels),
        peer=peer,
    )
