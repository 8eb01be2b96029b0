"""GLM-Image LoRA: adapters for the decoder as diffusers, PEFT, kohya and ComfyUI write them."""

import logging

import comfy.lora
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from server import PromptServer

from ..pipeline.errors import InputError
from .inputs import MENU
from .sampling import glm_model

# How trainers call the decoder, before the names of its layers. ComfyUI's is diffusion_model.
PREFIXES = ("base_model.model.transformer.", "base_model.model.", "transformer.", "diffusion_model.", "")
LISTED = 10  # unmatched keys to name


def comfy_keys(state: dict, layers: set[str]) -> dict:
    """Keys of any trainer -> ComfyUI's, for those that name a layer of `layers`; others stay as they are."""
    return {_comfy_key(key, layers): tensor for key, tensor in state.items()}


def _comfy_key(key: str, layers: set[str]) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix) and _layer(key.removeprefix(prefix)) in layers:
            return "diffusion_model." + key.removeprefix(prefix)
    return key


def _layer(key: str) -> str:
    """`transformer_blocks.0.attn1.to_q.lora_A.weight` -> `transformer_blocks.0.attn1.to_q`."""
    for mark in (".lora", ".dora", ".alpha", ".diff", ".hada", ".lokr", "_lora", ".w_norm", ".b_norm", ".oft", ".boft"):
        key = key.split(mark)[0]
    return key


def apply_lora(model, state: dict, strength: float):
    """MODEL and an adapter's tensors -> patched clone, keys that fitted nothing."""
    layers = {name for name, _ in glm_model(model).diffusion_model.named_modules()}
    state = comfy_keys(state, layers)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(state, names, log_missing=False)
    clone = model.clone()
    matched = set(clone.add_patches(patches, strength))
    unmatched = sorted(key for key in state if not _is_used(key, names, matched))
    return clone, unmatched


def _is_used(key: str, names: dict, matched: set) -> bool:
    return names.get(_layer(key)) in matched


class GLMImageLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLoRA",
            display_name="GLM-Image LoRA",
            category=MENU,
            description="Applies a LoRA to the decoder, whichever trainer wrote it; keys that fit nothing are listed.",
            inputs=[
                io.Model.Input("model", tooltip="The decoder."),
                io.Combo.Input(
                    "lora", options=folder_paths.get_filename_list("loras"), tooltip="A file in models/loras."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="How much of the adapter is added; negative values subtract it.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, lora, strength) -> io.NodeOutput:
        state = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", lora), safe_load=True)
        patched, unmatched = apply_lora(model, state, strength)
        if len(unmatched) == len(state):
            raise InputError(f"{lora} holds nothing for the GLM-Image decoder; its first key is {unmatched[0]}")
        if not unmatched:
            return io.NodeOutput(patched)
        listed = ", ".join(unmatched[:LISTED]) + (", ..." if len(unmatched) > LISTED else "")
        message = f"{lora}: {len(unmatched)} of {len(state)} keys fit no layer of GLM-Image: {listed}"
        logging.warning(message)
        PromptServer.instance.send_progress_text(message, cls.hidden.unique_id)  # shown on the node
        return io.NodeOutput(patched, ui=ui.PreviewText(message))
