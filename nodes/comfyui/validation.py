"""What a graph can get wrong about this model, said in one sentence before the first step."""

import torch

from ...pipeline.errors import InputError
from ...pipeline.geometry import LATENT, TOKEN

CHANNELS = 16  # of a latent


def check_conditioning(conds: dict[str, list[dict]], latents, model) -> None:
    """Raise `InputError` unless every conditioning of a sampling fits the model and the latents' shape."""
    if len(latents) != 4 or latents[1] != CHANNELS:
        raise InputError(
            f"the latent has shape {tuple(latents)} and GLM-Image takes (images, {CHANNELS}, height, width); "
            "make it with Empty GLM-Image Latent, or encode an image with the VAE of Load GLM-Image"
        )
    height, width = (side * LATENT for side in latents[-2:])
    if height % TOKEN or width % TOKEN:
        raise InputError(
            f"the latent is {width}x{height} px and GLM-Image takes multiples of {TOKEN}; "
            "make it with Empty GLM-Image Latent, or resize the image before VAE Encode"
        )
    for name, entries in conds.items():
        for entry in entries:
            _check_entry(name, entry, height, width, model)
            _check_rows(name, entry, latents[0])


def check_numbers(given: dict[str, torch.Tensor | None]) -> None:
    """Raise `InputError` for the first of these tensors that holds NaN or infinity; every image would be black."""
    for name, values in given.items():
        if isinstance(values, torch.Tensor) and values.is_floating_point() and not torch.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinity; check the nodes that {name} comes from")


def _check_entry(name: str, entry: dict, height: int, width: int, model) -> None:
    if "prior_token_ids" not in entry:
        raise InputError(f"the {name} conditioning holds no plan; make it with GLM-Image Conditioning")
    h, w = entry["plan_grid"]
    if enlargement((h, w), (height // TOKEN, width // TOKEN)) is None:
        raise InputError(
            f"the {name} conditioning's plan is {w * TOKEN}x{h * TOKEN} px, the latent {width}x{height} px; give both "
            "the same size, for a second sampler a whole multiple, or put Resize GLM-Image Plan before the conditioning"
        )
    _check_model(name, entry, model.dit_config)
    _check_references(name, entry)
    _check_length(name, entry)
    if entry.get("set_area_to_bounds"):
        raise InputError(
            f"the {name} conditioning's mask cuts the image to its bounds, which GLM-Image cannot follow; set "
            "set_cond_area to default"
        )
    for key, what in (("area", "an area"), ("control", "a ControlNet"), ("gligen", "GLIGEN boxes")):
        if key in entry:
            raise InputError(f"the {name} conditioning has {what}, which GLM-Image cannot follow; remove that node")


def enlargement(plan: tuple[int, int], latent: tuple[int, int]) -> int | None:
    """How many tokens on a side each token of a plan's grid becomes in a latent's; None if that is no whole number."""
    times, rest = divmod(latent[0], plan[0])
    return times if not rest and latent[1] == times * plan[1] else None


def _check_rows(name: str, entry: dict, images: int) -> None:
    plans = len(entry["prior_token_ids"])
    if images % plans:
        raise InputError(
            f"the {name} conditioning has plans for {plans} images, the latent is a batch of {images}; "
            "give Empty GLM-Image Latent the plan, or a batch size that is a multiple of it"
        )


def _check_model(name: str, entry: dict, config) -> None:
    if entry["codebook_size"] != config.prior_vq_quantizer_codebook_size:
        raise InputError(
            f"the {name} conditioning's plan uses a codebook of {entry['codebook_size']} tokens, this model one of "
            f"{config.prior_vq_quantizer_codebook_size}; plan with the planner of the same checkpoint"
        )
    if entry["cross_attn"].shape[-1] != config.text_embed_dim:
        raise InputError(
            f"the {name} conditioning's glyphs have {entry['cross_attn'].shape[-1]} channels, this model takes "
            f"{config.text_embed_dim}; use the glyph encoder of the same checkpoint"
        )


def _check_references(name: str, entry: dict) -> None:
    latents, tokens = entry.get("reference_latents") or [], entry.get("reference_token_ids") or []
    if len(latents) != len(tokens):
        raise InputError(
            f"the {name} conditioning has {len(latents)} reference latents and {len(tokens)} planned references; "
            "give reference images to GLM-Image Plan, which every reference must pass"
        )
    for i, (latent, ids) in enumerate(zip(latents, tokens)):
        patches = (latent.shape[-2] // 2) * (latent.shape[-1] // 2)
        if patches != ids.shape[-1]:
            raise InputError(
                f"reference {i + 1} of the {name} conditioning has a latent of {patches} patches and "
                f"{ids.shape[-1]} tokens; both must come from one GLM-Image Conditioning"
            )


def _check_length(name: str, entry: dict) -> None:
    mask = entry.get("glyph_mask")
    if mask is not None and mask.shape[-1] != entry["cross_attn"].shape[1]:
        raise InputError(
            f"the {name} conditioning's glyphs were changed in length ({mask.shape[-1]} to "
            f"{entry['cross_attn'].shape[1]}) after GLM-Image Conditioning; put all texts into one such node"
        )
