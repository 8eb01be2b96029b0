"""The release's own configuration (zai-org/GLM-Image), for figures that need no download: sizes, memory, benchmarks.

Loading never uses these numbers, it reads the checkpoint's JSON. Sources: defaults of transformers 5.23's
`GlmImageConfig`; the decoder's 32 heads of 128 and the VAE's widths from the released model's description.
"""

import torch

from .config import (
    DitConfig,
    GlyphConfig,
    RopeConfig,
    TextConfig,
    VaeConfig,
    VisionConfig,
    VisionLanguageConfig,
    VQConfig,
)
from .on_meta import on_meta

VISION_LANGUAGE = VisionLanguageConfig(
    text_config=TextConfig(
        vocab_size=168064,
        hidden_size=4096,
        intermediate_size=13696,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        attention_bias=True,
        vision_vocab_size=16512,
        pad_token_id=167841,
        eos_token_id=16385,
        rope_parameters=RopeConfig(rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=(8, 12, 12)),
    ),
    vision_config=VisionConfig(
        depth=40,
        hidden_size=1536,
        intermediate_size=6144,
        num_heads=16,
        in_channels=3,
        image_size=2048,
        patch_size=16,
        layer_norm_eps=1e-6,
        attention_bias=True,
    ),
    vq_config=VQConfig(embed_dim=2048, num_embeddings=16384, latent_channels=1536),
    image_token_id=167855,
    image_start_token_id=16384,
    image_end_token_id=16385,
)

GLYPH = GlyphConfig(
    vocab_size=384,
    d_model=1472,
    d_kv=64,
    d_ff=3584,
    num_layers=12,
    num_heads=6,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    pad_token_id=0,
    eos_token_id=1,
)

DIT = DitConfig(
    num_layers=30,
    num_attention_heads=32,
    attention_head_dim=128,
    in_channels=16,
    out_channels=16,
    patch_size=2,
    text_embed_dim=1472,
    time_embed_dim=512,
    condition_dim=256,
    prior_vq_quantizer_codebook_size=16384,
)

VAE = VaeConfig(
    in_channels=3,
    out_channels=3,
    latent_channels=16,
    block_out_channels=(128, 512, 1024, 1024),
    layers_per_block=3,
    norm_num_groups=32,
    latents_mean=(0.0,) * 16,
    latents_std=(1.0,) * 16,
    scaling_factor=1.0,
)

REFERENCE_PIXELS = {"min_pixels": 512**2, "max_pixels": 2048**2}  # of its `ProcessorConfig`


def meta_modules() -> dict[str, torch.nn.Module]:
    """Component folder -> its module on the meta device: names and shapes without memory."""
    from .glyph_encoder import GlyphEncoder
    from .planner import Planner
    from .transformer import Dit
    from .vae import Vae

    builds = {
        "vision_language_encoder": (Planner, VISION_LANGUAGE),
        "text_encoder": (GlyphEncoder, GLYPH),
        "transformer": (Dit, DIT),
        "vae": (Vae, VAE),
    }
    with on_meta():
        return {name: build(config, dtype=torch.bfloat16) for name, (build, config) in builds.items()}


def parameter_counts() -> dict[str, int]:
    """Component folder -> number of parameters."""
    modules = meta_modules()
    return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()}
