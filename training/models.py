"""The small model's sizes as the package's own configurations and modules: the release's architecture, only smaller."""

import torch

from ..pipeline.models.config import (
    DitConfig,
    GlyphConfig,
    RopeConfig,
    TextConfig,
    VaeConfig,
    VisionConfig,
    VisionLanguageConfig,
    VQConfig,
)
from ..pipeline.models.glyph_encoder import GlyphEncoder
from ..pipeline.models.planner import Planner
from ..pipeline.models.transformer import Dit
from ..pipeline.models.vae import Vae
from . import data, latent

GLYPH_CONFIG = GlyphConfig(
    vocab_size=384,
    d_model=96,
    d_kv=32,
    d_ff=192,
    num_layers=2,
    num_heads=3,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=64,
    layer_norm_epsilon=1e-6,
    pad_token_id=0,
    eos_token_id=1,
)
DIT_CONFIG = DitConfig(
    num_layers=5,
    num_attention_heads=3,
    attention_head_dim=64,
    in_channels=latent.CHANNELS,
    out_channels=latent.CHANNELS,
    patch_size=2,
    text_embed_dim=GLYPH_CONFIG.d_model,
    time_embed_dim=128,
    condition_dim=32,
    prior_vq_quantizer_codebook_size=data.CODEBOOK,
)
VAE_CONFIG = VaeConfig(
    in_channels=3,
    out_channels=3,
    latent_channels=latent.CHANNELS,
    block_out_channels=(16, 32, 64, 64),
    layers_per_block=1,
    norm_num_groups=8,
    latents_mean=(0.0,) * latent.CHANNELS,
    latents_std=(1.0,) * latent.CHANNELS,
    scaling_factor=1.0,
)
VISION_VOCAB = data.CODEBOOK + 16  # image start and end follow the codebook
FIRST_NAMED = VISION_VOCAB + 256 + len(data.VOCABULARY)  # bytes and words, then the named tokens
PLANNER_CONFIG = VisionLanguageConfig(
    text_config=TextConfig(
        vocab_size=FIRST_NAMED + 7,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        attention_bias=True,
        vision_vocab_size=VISION_VOCAB,
        pad_token_id=FIRST_NAMED,
        eos_token_id=data.CODEBOOK + 1,
        rope_parameters=RopeConfig(rope_theta=16.0, partial_rotary_factor=0.5, mrope_section=(2, 3, 3)),
    ),
    vision_config=VisionConfig(
        depth=2,
        hidden_size=96,
        intermediate_size=192,
        num_heads=4,
        in_channels=3,
        image_size=256,
        patch_size=16,
        layer_norm_eps=1e-6,
        attention_bias=True,
    ),
    vq_config=VQConfig(embed_dim=64, num_embeddings=data.CODEBOOK, latent_channels=96),
    image_token_id=FIRST_NAMED + 6,
    image_start_token_id=data.CODEBOOK,
    image_end_token_id=data.CODEBOOK + 1,
)
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)


def planner() -> Planner:
    """Small normal weights, embeddings and head that share what codes share, and a codebook made of the same parts."""
    model = Planner(PLANNER_CONFIG)
    layers = PLANNER_CONFIG.text_config.num_hidden_layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "language_model.layers" in name:
                weight.normal_(std=weight.shape[1] ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_((2 * layers) ** -0.5)
            elif name.endswith("_proj.bias"):
                weight.zero_()
        width = PLANNER_CONFIG.text_config.hidden_size
        table = model.model.language_model.embed_tokens.weight.normal_()
        table[: data.CODEBOOK] = code_vectors(width)
        model.lm_head.weight.normal_(std=width**-0.5)
        model.lm_head.weight[: data.CODEBOOK] = code_vectors(width) * width**-0.5
        model.model.vqmodel.quantize.embedding.weight.copy_(code_vectors(PLANNER_CONFIG.vq_config.embed_dim))
    return model


def vae() -> Vae:
    """torch's own initialisation."""
    return Vae(VAE_CONFIG)


def dit() -> Dit:
    """Blocks that are open, small residuals, and an output of zero."""
    model = Dit(DIT_CONFIG)
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.norm1.linear.weight.mul_(0.1)
            bias = block.norm1.linear.bias.zero_().view(12, -1)
            bias[[4, 5, 10, 11]] = 1.0  # the gates
            for weight in (block.attn1.to_out[0].weight, block.ff.net[2].weight):
                weight.mul_((2 * DIT_CONFIG.num_layers) ** -0.5)
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
        model.prior_token_embedding.weight.copy_(code_vectors(DIT_CONFIG.inner_dim))
    return model


def glyph() -> GlyphEncoder:
    """T5's own initialisation, which its unscaled attention needs; small letters start as copies of capitals."""
    config = GLYPH_CONFIG
    model = GlyphEncoder(config)
    inner = config.num_heads * config.d_kv
    fan = {"q": config.d_model * config.d_kv, "o": inner, "wo": config.d_ff}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not name.startswith("shared"):
                weight.normal_(std=fan.get(name.split(".")[-2], config.d_model) ** -0.5)
        table = model.shared.weight.normal_()
        table[3 + ord("a") : 3 + ord("z") + 1] = table[3 + ord("A") : 3 + ord("Z") + 1]
    return model


def code_vectors(dim: int, seed: int = 1) -> torch.Tensor:
    """(codes, dim) sums of one random vector for each thing a code says, so that codes share what they share."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[tuple, torch.Tensor] = {}
    rows = []
    for code in range(data.CODEBOOK):
        said = data.code_parts(code)
        for part in said:
            if part not in parts:
                parts[part] = torch.randn(dim, generator=generator)
        rows.append(torch.stack([parts[part] for part in said]).sum(0) / len(said) ** 0.5)
    return torch.stack(rows)


def run_dit(
    model: Dit, latents, glyphs, glyph_mask, prior, drop, time, size: tuple[int, int], layer: int, references=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity of the latents, and the image tokens after block `layer`. `time` is unshifted, 0..999."""
    seen: list[torch.Tensor] = []
    hook = model.transformer_blocks[layer].register_forward_hook(lambda _module, _input, out: seen.append(out[1]))
    sizes = torch.tensor([size], dtype=torch.float32, device=latents.device)
    crops = torch.zeros_like(sizes)
    about = {"glyph_mask": glyph_mask, "references": references}
    velocity = model(latents, glyphs, prior, drop, time, sizes, crops, **about)
    hook.remove()
    return velocity, seen[0]
