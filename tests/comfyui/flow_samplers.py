"""ComfyUI's samplers and schedulers on a flow whose answer is known: every value is normal, MEAN with deviation SPREAD.

Runs in ComfyUI's Python, through the pack's own MODEL, in which the exact velocity stands in for the network.
"""

import comfy.sample
import comfy.samplers
import torch

MEAN, SPREAD = 1.0, 0.5
SIDE, STEPS = 64, 30  # latents on a side: 65536 values, whose mean is known to 0.002


def exact_velocity(x, timestep, context=None, control=None, transformer_options=None, **_):
    """E[noise - value | x] where x = (1 - sigma) value + sigma noise."""
    sigma = transformer_options["sigmas"].view(-1, 1, 1, 1).to(x)
    kept = 1 - sigma
    variance = (kept * SPREAD) ** 2 + sigma**2
    return (x - MEAN * kept) * (sigma - kept * SPREAD**2) / variance - MEAN


def conditioning(model) -> tuple[list, list]:
    """A plan of zeros for SIDE latents, positive and negative; the exact velocity reads neither."""
    config, tokens = model.model.dit_config, SIDE // 4
    entry = {
        "prior_token_ids": torch.zeros(1, 4 * tokens * tokens, dtype=torch.long),
        "prior_token_drop": False,
        "plan_grid": (tokens, tokens),
        "codebook_size": config.prior_vq_quantizer_codebook_size,
    }
    embeds = torch.zeros(1, 1, config.text_embed_dim)
    return [[embeds, entry]], [[embeds, {**entry, "prior_token_drop": True}]]


def sampled(model, sampler: str, scheduler: str) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler makes, in the decoder's normalised latents."""
    latent = torch.zeros(1, 16, SIDE, SIDE)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    out = comfy.sample.sample(
        model, noise, STEPS, 1.0, sampler, scheduler, *conditioning(model), latent, disable_pbar=True, seed=1
    )
    values = model.model.process_latent_in(out)
    return values.mean().item(), values.std().item()


def measure(model) -> dict[str, dict[str, tuple[float, float]]]:
    """Every sampler on `simple`, every scheduler under euler: (mean, deviation)."""
    model.model.diffusion_model.forward = exact_velocity
    return {
        "samplers": {name: sampled(model, name, "simple") for name in comfy.samplers.SAMPLER_NAMES},
        "schedulers": {name: sampled(model, "euler", name) for name in comfy.samplers.SCHEDULER_NAMES},
    }
