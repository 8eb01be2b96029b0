"""Patches that other nodes put on a MODEL: the ones that the decoder honours, and the ones that it refuses by name.

Honoured, as ComfyUI's own joint-attention transformers do: blocks replaced (`patches_replace["dit"]`), patches after a
block (`patches["double_block"]`) and another attention (`optimized_attention_override`). What works on the layers of a
UNet would do nothing here, or break; it is refused before a step is spent on it.
"""

from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import optimized_attention_masked

from ...pipeline.errors import InputError

BLOCK = "double_block"
OVERRIDE = "optimized_attention_override"
# What a patch is called in `transformer_options`, and nodes that set it.
REFUSED = {
    "attn1": "Perturbed-Attention Guidance or Self-Attention Guidance",
    "attn2": "a node that replaces cross-attention",
    "attn1_patch": "HyperTile, Token Merging, Hypernetwork or Normalized Attention Guidance",
    "attn2_patch": "a node that patches cross-attention, such as IP-Adapter or Normalized Attention Guidance",
    "attn1_output_patch": "Token Merging or another node that patches self-attention",
    "attn2_output_patch": "a node that patches cross-attention",
    "input_block_patch": "Kohya Deep Shrink or another node that patches input blocks",
    "input_block_patch_after_skip": "Kohya Deep Shrink",
    "output_block_patch": "FreeU or Kohya Deep Shrink",
    "middle_block_patch": "a node that patches the middle block",
    "middle_block_after_patch": "a node that patches the middle block",
    "emb_patch": "a node that patches the time embedding",
    "forward_timestep_embed_patch": "a node that patches the time embedding",
    "post_input": "a node that adds tokens after the first layer",
    "rope_options": "Scale RoPE",
}


def check_patches(options: dict, layers: int) -> None:
    """Raise `InputError` if `transformer_options` hold a patch that a decoder of so many blocks cannot follow."""
    replaced = options.get("patches_replace") or {}
    names = [name for name, patches in (options.get("patches") or {}).items() if patches and name != BLOCK]
    names += [name for name, patches in replaced.items() if patches and name != "dit"]
    names += ["rope_options"] if options.get("rope_options") else []
    for name in names:
        made_by = REFUSED.get(name, "a node for another kind of model")
        raise InputError(f"the model has the patch {name} of {made_by}, which GLM-Image has no layer for; remove it")
    blocks = replaced.get("dit") or {}
    if blocks and not any((BLOCK, layer) in blocks for layer in range(layers)):
        asked = ", ".join(f"{kind} {number}" for kind, number in blocks)
        raise InputError(f"the model's patch is for {asked}; GLM-Image has the double blocks 0 to {layers - 1}")


def check_options(model_options: dict, layers: int) -> None:
    """`check_patches` before a sampling, and what else of a MODEL's options cannot apply."""
    if model_options.get("context_handler") is not None:
        raise InputError("the model has context windows, which split videos; remove Context Windows")
    check_patches(model_options.get("transformer_options", {}), layers)


def check_blocks(blocks, layers: int) -> None:
    """Raise `InputError` if another pack has put something of its own in place of the list of blocks."""
    if len(blocks) != layers:
        raise InputError(
            f"another pack has replaced the decoder's {layers} blocks by {type(blocks[0]).__name__}, which cannot run "
            "GLM-Image; remove that node, EasyCache does the same"
        )


def patches_of(options: dict, latents: torch.Tensor) -> "BlockPatches | None":
    """What `transformer_options` change about a pass; None if nothing."""
    blocks = (options.get("patches_replace") or {}).get("dit")
    if blocks or (options.get("patches") or {}).get(BLOCK) or OVERRIDE in options:
        return BlockPatches(options, latents)
    return None


class BlockPatches:
    """Runs the blocks of one pass as `transformer_options` want them, in the terms of ComfyUI's transformers."""

    def __init__(self, options: dict, latents: torch.Tensor):
        self.options, self.latents = options, latents
        self.replaced = (options.get("patches_replace") or {}).get("dit") or {}
        self.after = (options.get("patches") or {}).get(BLOCK) or []

    def block(self, layer: int, layers: int, run: Callable, glyphs, image, modulation):
        """`run(glyphs, image, modulation)` or what replaces it; then what follows it -> glyphs, image."""
        self.options |= {"block_index": layer, "total_blocks": layers, "block_type": "double"}
        if (BLOCK, layer) in self.replaced:
            glyphs, image = self._replaced(self.replaced[BLOCK, layer], run, glyphs, image, modulation)
        else:
            glyphs, image = run(glyphs, image, modulation)
        for patch in self.after:
            about = {"x": self.latents, "block_index": layer, "transformer_options": self.options}
            out = patch({"img": image, "txt": glyphs, **about})
            glyphs, image = out["txt"], out["img"]
        return glyphs, image

    def _replaced(self, patch: Callable, run: Callable, glyphs, image, modulation):
        def original(given: dict) -> dict:
            glyphs, image = run(given["txt"], given["img"], given["vec"])
            return {"txt": glyphs, "img": image}

        given = {"img": image, "txt": glyphs, "vec": modulation, "pe": None, "transformer_options": self.options}
        out = patch(given, {"original_block": original})
        return out["txt"], out["img"]

    def attention(self, q, k, v, mask, plain: Callable) -> torch.Tensor:
        """(B, H, L, D) over (B, H, Lk, D) -> (B, H, L, D), by the override if there is one, else `plain`."""
        if OVERRIDE not in self.options:
            return plain(q, k, v, mask)
        heads = q.shape[1]
        out = optimized_attention_masked(q, k, v, heads, mask, skip_reshape=True, transformer_options=self.options)
        return out.unflatten(2, (heads, -1)).transpose(1, 2)
