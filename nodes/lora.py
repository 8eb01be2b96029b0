"""GLM-Image LoRA: adapters for the decoder as diffusers, PEFT, kohya and ComfyUI write them."""

import logging

import comfy.lora
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..pipeline.errors import InputError, presentable
from ..pipeline.loading.weights import finite_flag, not_finite
from ..pipeline.text import shown
from .comfyui.page import LONGEST, show
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


def read_adapter(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file in models/loras; one that is damaged or no adapter is named."""
    path = folder_paths.get_full_path_or_raise("loras", name)
    try:
        state = comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # readers of pickles and safetensors raise what they like
        raise InputError(f"{name} cannot be read; is the file whole? {type(error).__name__}: {error}") from None
    if not isinstance(state, dict) or not state:
        raise InputError(f"{name} holds no tensors; choose an adapter for the GLM-Image decoder")
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} holds {shown(key)}, which is no tensor; choose an adapter")
    bad = not_finite({key: finite_flag(tensor) for key, tensor in state.items()})
    if bad:
        raise InputError(f"{name}: {bad[0]} holds NaN or infinite numbers ({len(bad)} tensors do); it is damaged")
    return state


def apply_lora(model, state: dict, strength: float):
    """MODEL and an adapter's tensors -> patched clone, keys that fitted nothing; raises for shapes that do not fit."""
    layers = {name for name, _ in glm_model(model).diffusion_model.named_modules()}
    state = comfy_keys(state, layers)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    try:
        patches = comfy.lora.load_lora(state, names, log_missing=False)
    except KeyError as error:
        raise InputError(f"the adapter is half of one: {error} is missing; download it again") from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"the adapter's tensors are of a wrong kind: {error}") from None
    _check_fit(model, patches)
    clone = model.clone()
    matched = set(clone.add_patches(patches, strength))
    unmatched = sorted(key for key in state if not _is_used(key, names, matched))
    return clone, unmatched


def _check_fit(model, patches: dict) -> None:
    """ComfyUI leaves out what does not fit a layer, with a line in its log."""
    shapes = {name: weight.shape for name, weight in model.model.named_parameters()}
    wrong = [key for key, patch in patches.items() if key in shapes and not _fits(patch, key, shapes[key])]
    if wrong:
        raise InputError(
            f"the adapter does not fit {len(wrong)} of {len(patches)} layers, first {wrong[0].removesuffix('.weight')} "
            f"of shape {tuple(shapes[wrong[0]])}; was it made for another size of GLM-Image?"
        )


def _fits(patch, key: str, shape: torch.Size) -> bool:
    """Whether ComfyUI would change a weight of this shape; tried on the meta device, which computes shapes only."""
    return _changes(patch, key, shape, "meta") or _changes(patch, key, shape, "cpu")  # few operators have no meta form


def _changes(patch, key: str, shape: torch.Size, device: str) -> bool:
    changes = []
    weight = torch.zeros(shape, device=device)
    try:
        patches = [(1.0, patch, 1.0, None, lambda change: changes.append(1) or change)]
        found = comfy.lora.calculate_weight(patches, weight, key)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return False
    is_set = isinstance(patch, tuple) and patch[0] == "set"
    return found.shape == shape and (is_set or bool(changes))


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
        state = read_adapter(lora)
        patched, unmatched = apply_lora(model, state, strength)
        if len(unmatched) == len(state):
            raise InputError(f"{lora} holds nothing for the GLM-Image decoder; its first key is {shown(unmatched[0])}")
        if not unmatched:
            return io.NodeOutput(patched)
        listed = ", ".join(unmatched[:LISTED]) + (", ..." if len(unmatched) > LISTED else "")
        message = f"{lora}: {len(unmatched)} of {len(state)} keys fit no layer of GLM-Image: {listed}"
        logging.warning(presentable(message, LONGEST))
        return io.NodeOutput(patched, ui=show(message, cls.hidden.unique_id))
