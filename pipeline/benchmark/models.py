"""What a benchmark runs: a checkpoint's components, or random weights of a configuration made on the device itself.

Both have `configs`, the four components as attributes, and `release`, as `GlmImage` has.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..devices.memory import empty_cache
from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from ..loading.components import MODULES
from ..loading.memory_needs import NOTHING
from ..models import released as release
from ..models import tiny
from ..models.config import RopeConfig
from ..models.on_meta import on_meta
from ..models.weight_forms import pack, round_layers

RELEASE = {
    PLANNER: release.VISION_LANGUAGE,
    GLYPH: release.GLYPH,
    DECODER: release.DIT,
    VAE: release.VAE,
}
# Everything about a third as wide as the release; the planner has 0.3 billion parameters. For machines without an
# accelerator, where the release's own sizes take minutes a token.
THIRD = {
    PLANNER: replace(
        release.VISION_LANGUAGE,
        text_config=replace(
            release.VISION_LANGUAGE.text_config,
            vocab_size=16512 + 512,
            hidden_size=1024,
            intermediate_size=3424,
            num_hidden_layers=20,
            num_attention_heads=16,
            pad_token_id=16512,
            rope_parameters=RopeConfig(rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=(4, 6, 6)),
        ),
        vision_config=replace(
            release.VISION_LANGUAGE.vision_config, depth=8, hidden_size=512, intermediate_size=2048, num_heads=8
        ),
        vq_config=replace(release.VISION_LANGUAGE.vq_config, embed_dim=512, latent_channels=512),
        image_token_id=16513,
    ),
    GLYPH: replace(release.GLYPH, d_model=512, d_ff=1216, num_layers=6),
    DECODER: replace(release.DIT, num_layers=10, num_attention_heads=8, text_embed_dim=512, time_embed_dim=256),
    VAE: replace(release.VAE, block_out_channels=(64, 128, 256, 256), layers_per_block=2),
}
TINY = {
    PLANNER: tiny.planner_config(),
    GLYPH: tiny.glyph_config(),
    DECODER: tiny.dit_config(),
    VAE: tiny.vae_config(),
}
CONFIGURATIONS = {"release": RELEASE, "third": THIRD, "tiny": TINY}


class RandomModels:
    """Components with random weights of a sensible size, each made when first asked for; without memory on "meta"."""

    def __init__(
        self,
        configs: dict,
        device: torch.device,
        dtypes: dict[str, torch.dtype],
        forms: Mapping[str, str] = NOTHING,
        compile: bool = False,
    ):
        self.configs, self.device, self.dtypes = configs, device, dtypes
        self.forms, self.compile = forms, compile
        self._modules: dict[str, torch.nn.Module] = {}

    @property
    def planner(self) -> torch.nn.Module:
        return self._component(PLANNER)

    @property
    def glyph_encoder(self) -> torch.nn.Module:
        return self._component(GLYPH)

    @property
    def transformer(self) -> torch.nn.Module:
        return self._component(DECODER)

    @property
    def vae(self) -> torch.nn.Module:
        return self._component(VAE)

    def release(self, *names: str) -> None:
        for name in names or tuple(MODULES):
            if self._modules.pop(name, None) is not None and self.device.type != "meta":
                empty_cache(self.device)

    def _component(self, name: str) -> torch.nn.Module:
        if name not in self._modules:
            module = random_module(MODULES[name][0], self.configs[name], self.device, self.dtypes[name])
            if form := self.forms.get(name):
                round_layers(module, form)
            if name == PLANNER and self.device.type != "meta":
                module.fuse()
                pack(module, self.device)
            if name == DECODER and self.compile:
                module.compile_blocks()
            self._modules[name] = module
        return self._modules[name]


def random_module(build, config, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """`build(config)` on the device: matrices keep their inputs' size, norms are near one, biases small."""
    with on_meta():
        module = build(config, dtype=dtype)
    module = module.to_empty(device=device).eval().requires_grad_(False)
    if device.type == "meta":
        return module
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.02, generator=generator)
    return module


def weight_bytes(*modules: torch.nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())
