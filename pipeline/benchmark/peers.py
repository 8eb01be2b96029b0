"""transformers' and diffusers' own models on the benchmark's weights.

With `device_check/reference_pair.py` the only file that imports them, and only when asked. They come with the `peer`
extra. A peer shares our tensors.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from ..errors import InputError
from ..models.config import DitConfig, GenerationConfig, GlyphConfig, VaeConfig, VisionLanguageConfig
from ..planning.prompt import PromptBatch

NEEDED = ("transformers", "diffusers", "accelerate")


def missing() -> list[str]:
    """Libraries that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def require() -> None:
    """Refuse before anything is measured when the libraries are not installed."""
    if lacking := missing():
        raise InputError(f"--peer needs {', '.join(lacking)}; run pip install 'comfyui-glm-image[peer]'")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformers", "diffusers")}


def planner(config: VisionLanguageConfig, ours: torch.nn.Module) -> torch.nn.Module:
    import transformers
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration

    transformers.logging.set_verbosity_error()
    values = asdict(config)
    values["text_config"]["rope_parameters"]["rope_type"] = "default"
    settings = GlmImageConfig(**values)
    with torch.device("meta"):
        model = GlmImageForConditionalGeneration(settings)
    rotary = model.model.language_model.rotary_emb  # its table is computed, not loaded
    model.model.language_model.rotary_emb = type(rotary)(settings.text_config).to(next(ours.parameters()).device)
    return _filled(model, ours)


def glyph_encoder(config: GlyphConfig, ours: torch.nn.Module) -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **asdict(config)))
    return _filled(model, ours, {"encoder.embed_tokens.weight": "shared.weight"})


def transformer(config: DitConfig, ours: torch.nn.Module) -> torch.nn.Module:
    from diffusers import GlmImageTransformer2DModel

    with torch.device("meta"):
        model = GlmImageTransformer2DModel(**asdict(config))
    return _filled(model, ours)


def vae(config: VaeConfig, ours: torch.nn.Module) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    levels = len(config.block_out_channels)
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            **asdict(config),
        )
    return _filled(model, ours)


def _filled(model: torch.nn.Module, ours: torch.nn.Module, aliases: dict[str, str] | None = None) -> torch.nn.Module:
    """Our tensors under their names."""
    state = ours.state_dict()
    state |= {alias: state[name] for alias, name in (aliases or {}).items()}
    model.load_state_dict(state, strict=True, assign=True)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"{left[0]} of the peer was never filled"
    return model.eval().requires_grad_(False)


class _Clock:
    """A streamer that notes when the first token after the prompt came."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.calls, self.first = now, 0, 0.0

    def put(self, _tokens) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call brings the prompt
            self.first = self.now()

    def end(self) -> None:
        pass


def prompt_inputs(batch: PromptBatch, device: torch.device) -> dict[str, torch.Tensor]:
    """Our prompts as transformers takes them; its grids come full before preview."""
    rows = len(batch.ids)
    grids = [[1, *grid] for grid in reversed(batch.grids)]
    return {
        "input_ids": batch.ids.to(device),
        "attention_mask": batch.mask.long().to(device),
        "image_grid_thw": torch.tensor(grids * rows, device=device),
        "images_per_sample": torch.tensor([len(grids)] * rows, device=device),
    }


@torch.no_grad()
def prefill(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    model.generate(**inputs, max_new_tokens=1, do_sample=False)


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    tokens: int,
    sampling: GenerationConfig,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds from the first token to the last of `tokens`."""
    clock = _Clock(now)
    sampled = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    if sampling.temperature == 0:
        sampled = {"do_sample": False}
    out = model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, streamer=clock, **sampled)
    assert out.shape[1] == inputs["input_ids"].shape[1] + tokens
    out.cpu()  # waits for the device
    return now() - clock.first


@torch.no_grad()
def tokenize_image(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """(3, 16h, 16w) pixels -> (h*w,) ids, through the packed patches that transformers takes."""
    patch = 16
    _, height, width = pixels.shape
    h, w = height // patch, width // patch
    patches = pixels.unflatten(2, (w, patch)).unflatten(1, (h, patch)).permute(1, 3, 0, 2, 4).reshape(h * w, -1)
    grid = torch.tensor([[1, h, w]], device=pixels.device)
    features = model.get_image_features(patches, grid).pooler_output
    return model.get_image_tokens(features, grid)


@torch.no_grad()
def velocity(model: torch.nn.Module, given: dict[str, torch.Tensor], caches=None, mode: str | None = None):
    """One pass of diffusers' transformer."""
    if caches is not None:
        caches.set_mode(mode)
    return model(**given, kv_caches=caches, return_dict=False)[0]


def reference_caches(model: torch.nn.Module, given: dict[str, torch.Tensor]):
    """diffusers' cache of one reference image."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(num_layers=model.config.num_layers)
    velocity(model, given, caches, "write")
    return caches
