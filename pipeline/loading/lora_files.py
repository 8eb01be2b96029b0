"""LoRA files for planner or decoder: read as PEFT, transformers, diffusers and trainers write them, and checked.

The settings (alpha, patterns, rsLoRA) are in the file's header as diffusers writes it, or in the adapter_config.json
beside an adapter_model.safetensors. What PEFT 0.18 computes from them is computed here. A component's configuration
suffices for the checks, so that a wrong file costs no minutes.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..models.config import DitConfig, VisionLanguageConfig
from ..models.lora import LayerLora, Loras
from ..models.on_meta import on_meta
from ..models.planner import Planner
from ..models.transformer import Dit
from ..models.weight_forms import linear_layers
from ..plan import UsedLora
from ..text import shown
from .checkpoint import DECODER, PLANNER
from .weights import STORED, finite_flag, not_finite, read_header

HEADER = "lora_adapter_metadata"  # diffusers'
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's
MAX_CONFIG = 1 << 20  # bytes
LANGUAGE_MODEL = "model.language_model."
KEY = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.(?!weight$|bias$)[\w-]+)?(\.(?P<kind>weight|bias))?"
)
BIAS = re.compile(r"(?P<layer>.+?)(\.base_layer)?\.bias")
PARTS = {
    ("lora_A", "weight"): "down",
    ("lora_B", "weight"): "up",
    ("lora_B", "bias"): "added_bias",
    ("lora_magnitude_vector", "weight"): "magnitude",
    ("lora_magnitude_vector", None): "magnitude",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin that take something out of the base weights
EMPTY = "holds no tensors; choose an adapter"
UNREAD = ("layer_replication", "alora_invocation_tokens", "arrow_config", "use_qalora", "megatron_config")


@dataclass(frozen=True)
class LoraTarget:
    """A component that files are for. `wrappers` stand before a layer's name, in this order, and `roots` are left out.
    A key of the `other` component is refused by the sentence `refusal`.
    """

    called: str
    part: str
    build: Callable[..., torch.nn.Module]
    wrappers: tuple[str, ...]
    roots: tuple[str, ...]
    other: re.Pattern
    refusal: str


PLANNERS = LoraTarget(
    "planner LoRA",
    "planner",
    Planner,
    ("base_model.model.", "vision_language_encoder."),
    ("", "model.", LANGUAGE_MODEL),
    re.compile(r"(^|[._])(transformer_blocks|diffusion_model|lora_unet|lora_transformer)"),
    "is made for the decoder (it holds {}); use it as a decoder LoRA",
)
DECODERS = LoraTarget(
    "decoder LoRA",
    "decoder",
    Dit,
    ("base_model.model.", "transformer.", "diffusion_model."),
    ("",),
    re.compile(r"layers\.\d+\.(self_attn|mlp)\."),
    "is made for the planner (it holds {}); use it as a planner LoRA",
)
TARGETS = {PLANNER: PLANNERS, DECODER: DECODERS}


@dataclass(frozen=True)
class ComponentLora:
    """A file, read and checked: what it changes in a component's linear layers, by their names."""

    name: str
    sha256: str  # of the tensors' file and the settings
    layers: dict[str, LayerLora]
    says_scale: bool  # whether the file's settings say how much it counts; else a layer's product counts once

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(len(lora.down) for lora in self.layers.values())

    def describe(self) -> str:
        dora = ", DoRA" if any(lora.magnitude is not None for lora in self.layers.values()) else ""
        scale = "" if self.says_scale else "\nno alpha in the file: its products count once"
        return f"{self.name}: {len(self.layers)} layers of rank {self.rank}{dora}{scale}"


LoraFile = str | os.PathLike | tuple[str | os.PathLike, float]  # and its strength
ComponentLoras = Sequence[tuple[ComponentLora, float]]  # each with its strength


def check_strength(strength: float) -> float:
    """The strength as a float; anything but a finite number is refused."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise InputError(f"a LoRA's strength {shown(strength)} is not accepted; use a number such as 0.8")
    return float(strength)


def acting(loras: ComponentLoras) -> tuple[tuple[ComponentLora, float], ...]:
    """Those that change anything: one of strength 0 leaves every bit as it is."""
    return tuple((lora, check_strength(strength)) for lora, strength in loras if strength != 0)


def used_loras(loras: ComponentLoras) -> tuple[UsedLora, ...]:
    """What a plan notes of the LoRAs that it was made with."""
    return tuple(UsedLora(lora.name, lora.sha256, strength) for lora, strength in acting(loras))


def by_layer(loras: ComponentLoras) -> dict[str, Loras]:
    """Layer's name -> what all files change in it."""
    found: dict[str, list] = {}
    for lora, strength in acting(loras):
        for name, layer in lora.layers.items():
            found.setdefault(name, []).append((layer, strength))
    return found


def read_planner_lora(path: Path, config: VisionLanguageConfig, name: str | None = None) -> ComponentLora:
    """A file, or a folder as PEFT writes it -> the LoRA, for a planner of this configuration."""
    return read_lora(PLANNERS, path, config, name)


def read_lora(
    target: LoraTarget, path: Path, config: VisionLanguageConfig | DitConfig, name: str | None = None
) -> ComponentLora:
    """A file, or a folder as PEFT writes it -> the LoRA, for a component of this configuration.

    Raises `InputError`, or `CheckpointError` for a damaged file, that calls it `name`.
    """
    path = Path(path)
    name = name or path.name or str(path)
    with _naming(target, name):
        file = _file(path)
        places, shapes = _places(target, read_header(file), config)
        settings, text = _settings(file, _metadata(file))
        layers = _layers(target, _tensors(file), places, shapes, settings)
        digest = _digest(file, text)
    return ComponentLora(name, digest, layers, settings.get("lora_alpha") is not None)


def check_lora_file(path: Path, strength: float = 1.0, target: LoraTarget = PLANNERS) -> str:
    """Refuse a file that cannot be a component's LoRA, before a checkpoint is there to compare it with; its SHA-256."""
    check_strength(strength)
    with _naming(target, path.name or str(path)):
        file = _file(path)
        header = read_header(file)
        if not header:
            raise InputError(EMPTY)
        for key in header:
            _place(target, key)
        return _digest(file, _settings(file, _metadata(file))[1])


def numbers_of(target: LoraTarget, path: Path) -> int:
    """How many numbers a LoRA file holds, from its header alone."""
    with _naming(target, path.name or str(path)):
        return sum(math.prod(shape) for shape, *_ in read_header(_file(path)).values())


def _digest(file: Path, settings: str) -> str:
    """Tells apart what files make of a component, whatever their names."""
    found = hashlib.sha256(settings.encode("utf-8", "replace"))
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def _naming(target: LoraTarget, name: str) -> Iterator[None]:
    """Around reading a file: errors say which."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{target.called} {shown(name, 80)} {error}") from None


def _file(path: Path) -> Path:
    """The file of tensors that a path means."""
    try:
        if path.is_dir():
            if not (path / FILE).is_file():
                raise InputError(f"is a folder without {FILE}; name the file in it")
            return path / FILE
        if not path.is_file():
            raise InputError("does not exist; name a .safetensors file, or a folder as PEFT writes it")
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read: {error}") from None
    if path.suffix != ".safetensors":
        raise InputError("is no .safetensors file; only these are loaded, since others can run code when read")
    return path


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    with _opened(file) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - a handle, not a dict


def _metadata(file: Path) -> dict[str, str]:
    with _opened(file) as tensors:
        return tensors.metadata() or {}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot be read: {error}; is the file whole?") from None


def _settings(file: Path, metadata: dict[str, str]) -> tuple[dict, str]:
    """An adapter's settings, and their text; both are empty where there are none."""
    text, where, beside = metadata.get(HEADER), "its header", file.with_name(CONFIG)
    if text is None and file.name == FILE and beside.is_file():
        where = CONFIG
        if beside.stat().st_size > MAX_CONFIG:
            raise InputError(f"has a {CONFIG} of {beside.stat().st_size:,} bytes, which is none")
        text = beside.read_text(encoding="utf-8", errors="replace")
    if not text:
        return {}, ""
    try:
        settings = json.loads(text)
        settings = {key.rpartition(".")[2]: value for key, value in settings.items()}
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"has settings in {where} that are no JSON object; save the adapter again") from None
    _check_settings(settings)
    return settings, text


def _check_settings(settings: dict) -> None:
    """Refuse adapters of other kinds than LoRA, and settings of which no scale can be made."""
    kind, begun = settings.get("peft_type") or "LORA", settings.get("init_lora_weights")
    if kind != "LORA":
        raise InputError(f"is of the kind {shown(kind)}; only LoRA is read")
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise InputError(f"began as {shown(begun)}, which changes the base weights; save it converted to plain LoRA")
    unread = next((name for name in UNREAD if settings.get(name)), None)
    if unread:
        raise InputError(f"uses {unread} of PEFT, which is not read; train it without")
    numbers = {"r": settings.get("r", 1), "lora_alpha": settings.get("lora_alpha")}
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(name) or {}
        if not isinstance(patterns, dict):
            raise InputError(f"has a {name} that is {shown(patterns)}; it should map layers to numbers")
        for pattern, number in patterns.items():
            _compiled(pattern)
            numbers[f"{name} of {pattern}"] = number
    for name, number in numbers.items():
        good = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if number is not None and not (good and (number > 0 or "alpha" in name)):
            raise InputError(f"has settings in which {shown(name)} is {shown(number)}, which is no number for it")


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")  # as PEFT
    except (re.error, RecursionError, OverflowError):
        raise InputError(f"has {shown(pattern)} among its patterns, which is no regular expression") from None


def _pattern(settings: dict, name: str, layer: str, default):
    """A setting of one layer: that of the first pattern that its name in the file matches."""
    for pattern, value in (settings.get(name) or {}).items():
        if _compiled(pattern).match(layer):
            return value
    return default


@functools.lru_cache(maxsize=2)
def _linear_shapes(target: LoraTarget, config) -> dict[str, tuple[int, int]]:
    """(o, i) of every linear layer of the component."""
    with on_meta():
        return {name: tuple(layer.weight.shape) for name, layer in linear_layers(target.build(config))}


def _places(target: LoraTarget, header: dict, config) -> tuple[dict[str, tuple[str, str, str]], dict]:
    """Each key -> its layer's name in the component and in the file, and what it holds; the shapes of the layers.

    The header suffices, so that whole checkpoints chosen by mistake are not read.
    """
    if not header:
        raise InputError(EMPTY)
    shapes = _linear_shapes(target, config)
    found: dict[str, tuple[str, str, str]] = {}
    seen: set[tuple[str, str]] = set()
    for key, (_, dtype, _) in header.items():
        own, part = _place(target, key)
        layer = _layer(target, own, shapes, key)
        if (layer, part) in seen:
            raise InputError(f"holds {part} of {layer} twice; save one adapter to a file")
        if dtype not in STORED:
            raise InputError(f"holds {shown(key, 80)} as {dtype}; an adapter has floating-point numbers")
        seen.add((layer, part))
        found[key] = layer, own, part
    return found, shapes


def _layers(target: LoraTarget, state: dict, places: dict, shapes: dict, settings: dict) -> dict[str, LayerLora]:
    """The file's tensors by layer of the component, checked."""
    bad = not_finite({key: finite_flag(tensor) for key, tensor in state.items()})
    if bad:
        raise InputError(f"is damaged: {bad[0]} holds NaN or infinite numbers ({len(bad)} tensors do)")
    found: dict[tuple[str, str], dict] = {}
    for key, (layer, own, part) in places.items():
        found.setdefault((layer, own), {})[part] = state[key]
    return {
        layer: _checked(target, layer, own, parts, shapes[layer], settings) for (layer, own), parts in found.items()
    }


def _place(target: LoraTarget, key: str) -> tuple[str, str]:
    """A file's key -> the layer's name in the file without wrappers, and what it holds of that layer's LoRA."""
    if target.other.search(key):
        raise InputError(target.refusal.format(shown(key, 60)))
    found = KEY.fullmatch(key)
    part = PARTS.get((found["part"], found["kind"])) if found else None
    if part is None:
        found, part = BIAS.fullmatch(key), "bias"
    if found is None or (part == "bias" and "lora_" in found["layer"]):
        raise InputError(f"holds {shown(key, 80)}; only LoRA of linear layers is read: lora_A, lora_B and their like")
    layer = found["layer"]
    for wrapper in target.wrappers:
        layer = layer.removeprefix(wrapper)
    return layer, part


def _layer(target: LoraTarget, own: str, known: dict, key: str) -> str:
    """The component's name of a layer; trainers may have wrapped the whole model, its base, or the language model."""
    for prefix in target.roots:
        if prefix + own in known:
            return prefix + own
    if key.endswith(".bias") and "lora_" not in key:
        raise InputError(f"holds {shown(key, 80)} besides LoRA, which is not read; train it with bias 'none'")
    raise InputError(
        f"holds {shown(key, 100)}, which is no linear layer of this {target.part}; is it for another model?"
    )


def _checked(
    target: LoraTarget, layer: str, own: str, parts: dict, shape: tuple[int, int], settings: dict
) -> LayerLora:
    """One layer's LoRA, whose tensors fit the layer's weight (o, i) and each other."""
    out, width = shape
    if ("up" in parts) != ("down" in parts):
        raise InputError(f"holds half of {layer}: lora_A and lora_B belong together; download it again")
    up, down = parts.pop("up", torch.zeros(out, 0)), parts.pop("down", torch.zeros(0, width))
    rank = down.shape[0] if down.ndim else -1
    wanted = {"lora_A": (down, (rank, width)), "lora_B": (up, (out, rank))}
    wanted |= {part: (tensor.reshape(-1), (out,)) for part, tensor in parts.items()}
    for part, (tensor, fitting) in wanted.items():
        if tuple(tensor.shape) != fitting:
            raise InputError(
                f"has {part} of {layer} as {tuple(tensor.shape)}, where weights of {out} x {width} want "
                f"{fitting}; was it made for another {target.part}?"
            )
    said = _pattern(settings, "rank_pattern", own, settings.get("r"))
    if rank > 0 and said is not None and said != rank:
        raise InputError(f"has rank {rank} in {layer}, and {said} by its settings; do they belong together?")
    alpha = _pattern(settings, "alpha_pattern", own, settings.get("lora_alpha"))
    root = math.sqrt(rank) if settings.get("use_rslora") and rank else max(rank, 1)
    scale = 1.0 if alpha is None else alpha / root
    return LayerLora(up, down, scale, **{part: tensor.reshape(-1) for part, tensor in parts.items()})
