"""The checkpoint's JSON files as frozen dataclasses.

Field names are the JSON's keys. A field without a default must be in the file; nothing is guessed. Keys that
only one value of is supported are checked, so that another architecture fails here and not as a wrong picture.
Key lists: transformers 5.23 `configuration_glm_image.py`, diffusers 0.42.1 `transformer_glm_image.py`.
"""

import json
import sys
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ..errors import CheckpointError
from ..text import shown

MAX_JSON = 256 << 20  # bytes; the release's largest, its tokenizer, has 20 MB
MAX_INT, MAX_ITEMS, MAX_LAYERS = 2**31, 4096, 1000
LAYERS = ("num_hidden_layers", "num_layers", "depth", "layers_per_block")
RESAMPLING = range(6)  # Pillow's filters
MAY_BE_ZERO = ("resample", "top_k")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object, else raise `CheckpointError` naming the file."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise CheckpointError(f"{path} has {size:,} bytes; no file of a checkpoint's settings is that large")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is the download complete?") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def _take(cls, data: dict, where: str, **converted):
    """Build `cls` from the keys it declares; a missing one, or one of a wrong kind, fails with the file's name."""
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in data and f.name not in converted]
    if missing:
        raise CheckpointError(f"{where}: key {', '.join(map(repr, missing))} is missing")
    given = {f.name: f.type for f in fields(cls) if f.name in data or f.name in converted}
    return cls(**{name: _checked(name, kind, (data | converted)[name], where) for name, kind in given.items()})


def _checked(name: str, kind, value, where: str):
    """A value of the JSON as the field wants it; sizes no model has would be built for minutes."""
    if is_dataclass(kind):
        return value
    value = tuple(value) if isinstance(value, list) else value
    if kind in (int, float, bool):
        good = _is(kind, name, value)
    else:
        item, *rest = get_args(kind)
        good = isinstance(value, tuple) and len(value) <= MAX_ITEMS and all(_is(item, name, each) for each in value)
        good = good and (rest == [...] or len(value) == 1 + len(rest))
    if not good:
        raise CheckpointError(f"{where}: {name} is {shown(value)}, which is no value for it")
    return value


def _is(kind: type, name: str, value) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    least = 0 if name in MAY_BE_ZERO or name.endswith("_token_id") else 1
    return isinstance(value, int) and least <= value <= (MAX_LAYERS if name in LAYERS else MAX_INT)


def _expect(data: dict, where: str, **accepted) -> None:
    """Refuse a file whose `key` is present with another value than the one this code implements."""
    for key, value in accepted.items():
        if key in data and data[key] != value:
            raise CheckpointError(f"{where}: {key} is {shown(data[key])}, only {shown(value)} is supported")


def _section(data: dict, key: str, where: str) -> dict:
    if not isinstance(data.get(key), dict):
        raise CheckpointError(f"{where}: key {key!r} is missing or not an object")
    return data[key]


@dataclass(frozen=True)
class RopeConfig:
    """`rope_parameters` of the planner: `mrope_section` counts rotary frequencies for (time, row, column)."""

    rope_theta: float
    partial_rotary_factor: float
    mrope_section: tuple[int, int, int]


@dataclass(frozen=True)
class TextConfig:
    """The planner's language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool
    vision_vocab_size: int
    pad_token_id: int
    eos_token_id: int
    rope_parameters: RopeConfig

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    """The vision tokenizer's ViT; `image_size` sets the learned position table's side in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    attention_bias: bool


@dataclass(frozen=True)
class VQConfig:
    """The vision tokenizer's codebook of `num_embeddings` x `embed_dim`."""

    embed_dim: int
    num_embeddings: int
    latent_channels: int


@dataclass(frozen=True)
class VisionLanguageConfig:
    """`vision_language_encoder/config.json`."""

    text_config: TextConfig
    vision_config: VisionConfig
    vq_config: VQConfig
    image_token_id: int
    image_start_token_id: int
    image_end_token_id: int

    @classmethod
    def from_json(cls, path: Path) -> "VisionLanguageConfig":
        data = read_json(path)
        _expect(data, str(path), model_type="glm_image", tie_word_embeddings=False)
        text = _section(data, "text_config", str(path))
        vision = _section(data, "vision_config", str(path))
        vq = _section(data, "vq_config", str(path))
        rope = _section(text, "rope_parameters", f"{path} text_config")
        _expect(text, f"{path} text_config", hidden_act="silu", model_type="glm_image_text")
        _expect(rope, f"{path} rope_parameters", rope_type="default")
        _expect(vision, f"{path} vision_config", hidden_act="gelu", spatial_merge_size=1, model_type="glm_image_vision")
        rope_config = _take(RopeConfig, rope, f"{path} rope_parameters")
        config = _take(
            cls,
            data,
            str(path),
            text_config=_take(TextConfig, text, f"{path} text_config", rope_parameters=rope_config),
            vision_config=_take(VisionConfig, vision, f"{path} vision_config"),
            vq_config=_take(VQConfig, vq, f"{path} vq_config"),
        )
        _expect(text, f"{path} text_config", head_dim=config.text_config.head_dim)
        rotary = int(config.text_config.head_dim * rope_config.partial_rotary_factor)
        if 2 * sum(rope_config.mrope_section) != rotary:
            section = list(rope_config.mrope_section)
            raise CheckpointError(f"{path}: mrope_section {section} does not sum to half of {rotary} rotary channels")
        return config


@dataclass(frozen=True)
class GenerationConfig:
    """`vision_language_encoder/generation_config.json`: how plans are sampled unless the user says otherwise."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50  # transformers' default when the file is silent

    @classmethod
    def from_json(cls, path: Path) -> "GenerationConfig":
        data = {key: value for key, value in read_json(path).items() if value is not None}
        return _take(cls, data, str(path))

    def override(self, temperature: float | None, top_p: float | None) -> "GenerationConfig":
        """Replace what the user set; None keeps the checkpoint's value."""
        given = {"temperature": temperature, "top_p": top_p}
        return replace(self, **{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class ProcessorConfig:
    """The image half of `processor/processor_config.json`: pixel limits and normalisation for the ViT."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    resample: int

    @classmethod
    def from_folder(cls, folder: Path) -> "ProcessorConfig":
        """Read `processor_config.json`, or the `preprocessor_config.json` that earlier releases wrote."""
        path = folder / "processor_config.json"
        data = read_json(path) if path.exists() else {}
        if "image_processor" not in data:
            path = folder / "preprocessor_config.json"
            data = {"image_processor": read_json(path)}
        image = _section(data, "image_processor", str(path))
        _expect(image, str(path), merge_size=1, temporal_patch_size=1, do_normalize=True, do_rescale=True)
        size = _section(image, "size", str(path))
        for key in ("shortest_edge", "longest_edge"):
            if key not in size:
                raise CheckpointError(f"{path}: key 'size.{key}' is missing")
        config = _take(cls, image, str(path), min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
        if config.min_pixels > config.max_pixels or not all(config.image_std) or config.resample not in RESAMPLING:
            raise CheckpointError(f"{path}: size, image_std or resample is of no use; is the download complete?")
        return config


@dataclass(frozen=True)
class GlyphConfig:
    """`text_encoder/config.json`: a T5 encoder over UTF-8 bytes."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def from_json(cls, path: Path) -> "GlyphConfig":
        data = read_json(path)
        _expect(data, str(path), model_type="t5", feed_forward_proj="gated-gelu", is_decoder=False)
        return _take(cls, data, str(path))


@dataclass(frozen=True)
class DitConfig:
    """`transformer/config.json`: the diffusion transformer."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    patch_size: int
    text_embed_dim: int
    time_embed_dim: int
    condition_dim: int
    prior_vq_quantizer_codebook_size: int

    @property
    def inner_dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, path: Path) -> "DitConfig":
        data = read_json(path)
        _expect(data, str(path), _class_name="GlmImageTransformer2DModel", patch_size=2)
        return _take(cls, data, str(path))


@dataclass(frozen=True)
class VaeConfig:
    """`vae/config.json`: the autoencoder, with the mean and standard deviation that normalise its latents."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    scaling_factor: float

    @classmethod
    def from_json(cls, path: Path) -> "VaeConfig":
        data = read_json(path)
        config = _take(cls, data, str(path))
        blocks = len(config.block_out_channels)
        _expect(
            data,
            str(path),
            _class_name="AutoencoderKL",
            act_fn="silu",
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
        )
        for key in ("latents_mean", "latents_std"):
            value = getattr(config, key)
            if len(value) != config.latent_channels:
                raise CheckpointError(f"{path}: {key} must list {config.latent_channels} numbers")
        return config


@dataclass(frozen=True)
class SchedulerConfig:
    """`scheduler/scheduler_config.json`: the linear shift of the noise schedule."""

    num_train_timesteps: int
    base_shift: float
    max_shift: float
    base_image_seq_len: int

    @classmethod
    def from_json(cls, path: Path) -> "SchedulerConfig":
        data = read_json(path)
        _expect(
            data,
            str(path),
            _class_name="FlowMatchEulerDiscreteScheduler",
            use_dynamic_shifting=True,
            time_shift_type="linear",
            shift_terminal=None,
            use_karras_sigmas=False,
            use_exponential_sigmas=False,
            use_beta_sigmas=False,
            invert_sigmas=False,
            stochastic_sampling=False,
        )
        return _take(cls, data, str(path))
