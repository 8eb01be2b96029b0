"""LoRA layers by peft on our modules, and the files that other software reads.

Our modules have the names of transformers' and diffusers', so that keys need no table. An adapter's factor is
multiplied into its matrices when it is written: a reader that overlooks alpha gets the same strength as one that does
not.
"""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save

from ...pipeline.errors import InputError
from ...pipeline.files import replacing, write_text
from .settings import LoraSettings

NAME = "default"  # peft's for the adapter of a model that has one
HEADER = "lora_adapter_metadata"  # diffusers' key of the settings in a file's header
PREFIX = {"planner": "base_model.model.", "decoder": "transformer."}  # of PEFT and of diffusers
WRITTEN = (
    "peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "use_rslora", "use_dora", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "base_model_name_or_path", "inference_mode",
)  # fmt: skip
FILES = {"planner": "adapter_model.safetensors", "decoder": "pytorch_lora_weights.safetensors"}  # their names


def require_peft() -> None:
    """Refuse before anything is loaded where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise InputError("training a LoRA needs peft; run pip install 'comfyui-glm-image[train]'")


def lora_config(settings: LoraSettings, written: bool = False):
    """peft's settings of the adapter in training, or as it is `written`, its factor being in the matrices."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank,
        target_modules=list(settings.layers),
        lora_dropout=0.0,
        bias="none",
        inference_mode=written,
        base_model_name_or_path=settings.model if settings.component == "planner" else None,
    )


def add_adapter(module: torch.nn.Module, settings: LoraSettings) -> dict[str, torch.nn.Parameter]:
    """Put a new adapter into `module` -> its float32 matrices by their keys in a file, without prefix.

    Everything else stops learning. The up projections are zero, so the module computes what it did.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(lora_config(settings), module)
    module.requires_grad_(False)
    found = {}
    for name, layer in adapted_layers(module).items():
        layer.scaling[NAME] = settings.scale
        for part in ("lora_A", "lora_B"):
            matrix = getattr(layer, part)[NAME]
            matrix.weight = torch.nn.Parameter(matrix.weight.detach().float())
            found[f"{name}.{part}.weight"] = matrix.weight
    return found


def adapted_layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name -> peft's layer, for every layer that an adapter changes."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def write_adapter(folder: Path, parameters: dict[str, torch.Tensor], settings: LoraSettings) -> Path:
    """Write the adapter for others; float32 matrices are kept as half as many bytes."""
    prefix, config = PREFIX[settings.component], _plain(lora_config(settings, written=True))
    tensors = {}
    for name, matrix in parameters.items():
        factor = settings.scale if ".lora_B." in name else 1.0
        tensors[prefix + name] = (factor * matrix.detach()).to("cpu", torch.bfloat16).contiguous()
    path = folder / FILES[settings.component]
    if settings.component == "planner":
        write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    else:
        config = {prefix + key: value for key, value in config.items()}  # diffusers reads those of its prefix only
    content = save(tensors, metadata={"format": "pt", HEADER: json.dumps(config, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _plain(config) -> dict:
    """What of a configuration decides the adapter's effect, as JSON has it; every version of peft knows these names."""
    values = config.to_dict()
    return {key: sorted(values[key]) if isinstance(values[key], set) else values[key] for key in WRITTEN}
