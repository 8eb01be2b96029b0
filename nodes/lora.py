"""LoRA for the decoder, as diffusers, PEFT, kohya and ComfyUI write it, and for the planner, as PEFT does."""

import logging
import re
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..pipeline.errors import InputError, presentable
from ..pipeline.loading.lora_files import CONFIG, read_planner_lora
from ..pipeline.text import shown
from . import sockets
from .comfyui.lora import answer_trainers_keys, apply_adapter, read_adapter
from .comfyui.model_folders import state_of
from .comfyui.page import LONGEST, show
from .inputs import MENU
from .sampling import glm_model

LISTED = 10  # unmatched keys to name
PLANNERS = re.compile(r"layers\.\d+\.(self_attn|mlp)\.")  # keys of its language model, however wrapped

answer_trainers_keys()


def lora_inputs() -> list[io.Input]:
    """A file, and how much of it."""
    return [
        io.Combo.Input("lora", options=folder_paths.get_filename_list("loras"), tooltip="A file in models/loras."),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-20.0,
            max=20.0,
            step=0.05,
            tooltip="How much of the adapter is added; negative values subtract it.",
        ),
    ]


def lora_path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))


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
                *lora_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, lora, strength) -> io.NodeOutput:
        glm_model(model)
        state, settings = read_adapter(lora_path(lora), lora)
        patched, unmatched = apply_adapter(model, state, settings, strength)
        if len(unmatched) == len(state):
            first = shown(unmatched[0], 80)
            if PLANNERS.search(unmatched[0]):
                raise InputError(f"{lora} is made for the planner (it holds {first}); use GLM-Image Planner LoRA")
            raise InputError(f"{lora} holds nothing for the GLM-Image decoder; its first key is {first}")
        if not unmatched:
            return io.NodeOutput(patched, ui=show(f"{lora}: all {len(state)} keys are used", cls.hidden.unique_id))
        listed = ", ".join(unmatched[:LISTED]) + (", ..." if len(unmatched) > LISTED else "")
        message = f"{lora}: {len(unmatched)} of {len(state)} keys fit no layer of GLM-Image: {listed}"
        logging.warning(presentable(message, LONGEST))
        return io.NodeOutput(patched, ui=show(message, cls.hidden.unique_id))


class GLMImagePlannerLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImagePlannerLoRA",
            display_name="GLM-Image Planner LoRA",
            category=MENU,
            description="Applies a LoRA to the planner, in the form of PEFT; plans note which files made them.",
            inputs=[
                sockets.Planner.Input("planner", tooltip="The planner; several of these nodes add up, in any order."),
                *lora_inputs(),
            ],
            outputs=[sockets.Planner.Output(display_name="planner")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, planner, lora, strength) -> io.NodeOutput:
        read = read_planner_lora(lora_path(lora), planner.config, lora)
        return io.NodeOutput(planner.with_lora(read, strength), ui=show(read.describe(), cls.hidden.unique_id))

    @classmethod
    def fingerprint_inputs(cls, lora, **_):
        """A file that was trained on is another one."""
        path = lora_path(lora)
        return state_of(path) + state_of(path.with_name(CONFIG))
