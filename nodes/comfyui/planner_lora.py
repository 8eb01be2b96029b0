"""LoRA on the planner by ComfyUI's own patches, which it takes back when another graph wants the planner without them.

Weights of floats become patched weights, wherever ComfyUI keeps them. Layers of 8 and 4 bits get the change beside
their codes, and biases are replaced: both are attributes, which ComfyUI exchanges and puts back.
"""

import torch
from comfy.weight_adapter import WeightAdapterBase

from ...pipeline.loading.lora_files import ComponentLoras, by_layer
from ...pipeline.models.lora import Loras, beside_codes, change_weight, changed_bias, constant
from ...pipeline.models.weight_forms import CodedLinear


class LayerPatch(WeightAdapterBase):
    """What all LoRAs of a planner change in the weights of one layer; the order in which they came is of no account."""

    name = "glm_image_planner_lora"

    def __init__(self, loras: Loras):
        self.loras = loras
        self.loaded_keys: set[str] = set()
        self.weights = ()  # for ComfyUI to look through

    def calculate_weight(self, weight, key, strength, *_, **__) -> torch.Tensor:
        return change_weight(weight, [(lora, strength * own) for lora, own in self.loras])


def with_loras(patcher, loras: ComponentLoras):
    """A planner's patcher without LoRA -> a clone with these; the weights that both share are not touched yet."""
    clone, weights, offload = patcher.clone(), {}, patcher.offload_device
    for name, changes in by_layer(loras).items():
        layer = clone.model.get_submodule(name)
        bias = changed_bias(clone.get_model_object(f"{name}.bias"), changes)
        if bias is not None:
            clone.add_object_patch(f"{name}.bias", constant(bias, offload))
        if not isinstance(layer, CodedLinear):
            weights[f"{name}.weight"] = LayerPatch(changes)
            continue
        for attribute, value in beside_codes(layer, changes).items():
            clone.add_object_patch(f"{name}.{attribute}", constant(value, offload))
    clone.add_patches(weights)
    return clone
