"""GLM-Image LoRA: adapters for the decoder as diffusers, PEFT, kohya and ComfyUI write them."""

import logging
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..pipeline.errors import InputError, presentable
from ..pipeline.text import shown
from .comfyui.lora import answer_trainers_keys, apply_adapter, read_adapter
from .comfyui.page import LONGEST, show
from .inputs import MENU
from .sampling import glm_model

LISTED = 10  # unmatched keys to name

answer_trainers_keys()


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
        glm_model(model)
        state, settings = read_adapter(Path(folder_paths.get_full_path_or_raise("loras", lora)), lora)
        patched, unmatched = apply_adapter(model, state, settings, strength)
        if len(unmatched) == len(state):
            raise InputError(f"{lora} holds nothing for the GLM-Image decoder; its first key is {shown(unmatched[0])}")
        if not unmatched:
            return io.NodeOutput(patched, ui=show(f"{lora}: all {len(state)} keys are used", cls.hidden.unique_id))
        listed = ", ".join(unmatched[:LISTED]) + (", ..." if len(unmatched) > LISTED else "")
        message = f"{lora}: {len(unmatched)} of {len(state)} keys fit no layer of GLM-Image: {listed}"
        logging.warning(presentable(message, LONGEST))
        return io.NodeOutput(patched, ui=show(message, cls.hidden.unique_id))
