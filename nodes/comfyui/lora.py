"""Adapters as trainers write them -> patches of a MODEL.

diffusers and PEFT keep how much an adapter counts (`lora_alpha`, patterns, `use_rslora`) in the file's header or in
adapter_config.json, kohya in `.alpha` tensors. DoRA follows its paper and PEFT, where the new weight's norm divides the
magnitude; ComfyUI's own takes the old weight's. Shapes: r rank, i inputs, o outputs of a layer.
"""

import functools
import json
import math
import re
from pathlib import Path

import comfy.lora
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter

from ...pipeline.errors import InputError
from ...pipeline.loading.weights import finite_flag, not_finite
from ...pipeline.text import shown
from .beside_codes import DoraAdapter, layer_of
from .model import GlmImageModel

MODEL = "diffusion_model."
DOTTED = ("", "transformer.", "base_model.model.", "base_model.model.transformer.")  # diffusers, PEFT
FLAT = ("lycoris_", "lora_transformer_")  # LyCORIS, OneTrainer; ComfyUI knows kohya's lora_unet_
HEADER = "lora_adapter_metadata"  # diffusers'
MAGNITUDE = re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?$")
DOWN = re.compile(r"\.(lora_A(\.default)?\.weight|lora_down\.weight|lora\.down\.weight|lora_A)$")
BIAS = re.compile(r"\.(lora_B(\.default)?\.bias|lora_up\.bias)$")
WHOLE = re.compile(r"\.(diff|diff_b|w_norm|b_norm|set_weight)$")


def trainer_keys(model) -> dict[str, str]:
    """Names under which trainers know the decoder's layers -> keys of ComfyUI's model."""
    found = {}
    for key in model.state_dict():
        if key.startswith(MODEL) and key.endswith(".weight"):
            name = key.removeprefix(MODEL).removesuffix(".weight")
            found |= {prefix + name: key for prefix in DOTTED}
            found |= {prefix + name.replace(".", "_"): key for prefix in FLAT}
    return found


def answer_trainers_keys() -> None:
    """Let ComfyUI's own LoRA loaders, and packs that use them, find a decoder's layers under all trainers' names."""
    ask = comfy.lora.model_lora_keys_unet
    if hasattr(ask, "answers_glm_image"):
        return

    @functools.wraps(ask)
    def answer(model, key_map=None):
        found = ask(model, {} if key_map is None else key_map)
        return found | trainer_keys(model) if isinstance(model, GlmImageModel) else found

    answer.answers_glm_image = True
    comfy.lora.model_lora_keys_unet = answer


def read_adapter(path: Path, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """A file's tensors, and the settings of its header or of the adapter_config.json beside it.

    A file that is damaged or no adapter is called `name` in the error.
    """
    try:
        state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
        settings = _settings(path, metadata or {})
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
    return state, settings


def _settings(path: Path, metadata: dict) -> dict:
    text, beside = metadata.get(HEADER), path.with_name("adapter_config.json")
    if text is None and path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    settings = json.loads(text) if text else {}
    return {key.removeprefix("transformer."): value for key, value in settings.items()}


def scaling(settings: dict, layer: str, rank: int) -> float | None:
    """How much a layer's product counts by an adapter's settings, as PEFT; None where they do not say."""
    alpha = settings.get("lora_alpha")
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
            break
    if alpha is None:
        return None
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def in_comfyui_form(state: dict, settings: dict) -> dict[str, torch.Tensor]:
    """The tensors with ComfyUI's names for magnitudes, and `.alpha` wherever only the settings tell it."""
    form = {}
    for key, tensor in state.items():
        if MAGNITUDE.search(key):
            form[MAGNITUDE.sub(".dora_scale", key)] = tensor.reshape(-1, 1)
        else:
            form[key] = tensor
    for key, tensor in state.items():
        layer = DOWN.sub("", key)
        factor = scaling(settings, layer, tensor.shape[0]) if layer != key else None
        if factor is not None and f"{layer}.alpha" not in state:
            form[f"{layer}.alpha"] = torch.tensor(factor * tensor.shape[0])
    return form


def apply_adapter(model, state: dict, settings: dict, strength: float):
    """MODEL and an adapter -> patched clone, keys that fitted nothing; raises for shapes that do not fit."""
    form = in_comfyui_form(state, settings)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = _patches(form, names)
    biases = bias_patches(form, names, patches)
    used = {key for key in form if WHOLE.search(key) and names.get(WHOLE.sub("", key)) in patches} | biases.keys()
    used |= {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}
    patches |= dict(biases.values())
    _check_fit(model, patches)
    clone = model.clone()
    clone.add_patches(patches, strength)
    return clone, sorted(key for key in state if MAGNITUDE.sub(".dora_scale", key) not in used)


def _patches(form: dict, names: dict) -> dict:
    """As ComfyUI reads them, with DoRA of our own."""
    try:
        patches = comfy.lora.load_lora(form, names, log_missing=False)
    except KeyError as error:
        raise InputError(f"the adapter is half of one: {error} is missing; download it again") from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"the adapter's tensors are of a wrong kind: {error}") from None
    for key, patch in patches.items():
        if type(patch) is LoRAAdapter and patch.weights[4] is not None and patch.weights[3] is None:
            patches[key] = DoraAdapter(patch.loaded_keys, patch.weights)
    return patches


def bias_patches(form: dict, names: dict, patches: dict) -> dict[str, tuple]:
    """Biases of the up projections, by their keys in the file: (the model's key, a patch that adds them)."""
    found = {}
    for key, tensor in form.items():
        layer = BIAS.sub("", key)
        weight = names.get(layer) if layer != key else None
        if weight in patches:
            alpha, rank = form.get(f"{layer}.alpha"), patches[weight].weights[1].shape[0]
            factor = 1.0 if alpha is None else alpha.item() / rank
            found[key] = (weight.removesuffix(".weight") + ".bias", ("diff", (factor * tensor,)))
    return found


def _check_fit(model, patches: dict) -> None:
    """ComfyUI leaves out what does not fit a layer, with a line in its log."""
    shapes = {name: weight.shape for name, weight in model.model.named_parameters()}
    coded = {key: layer_of(model.model, key) for key in patches if key in shapes and key.endswith(".weight")}
    shapes |= {key: torch.Size(model.model.get_submodule(name).shape) for key, name in coded.items() if name}
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
