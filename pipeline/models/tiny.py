"""Configurations of the release's architecture, small enough for a check or a test."""

from dataclasses import replace

from . import released as release
from .config import DitConfig, GlyphConfig, VaeConfig, VisionLanguageConfig


def planner_config(layers: int = 2) -> VisionLanguageConfig:
    """The release's planner with its 32 heads over 2 key heads, 64 channels wide."""
    config = release.VISION_LANGUAGE
    rope = replace(config.text_config.rope_parameters, mrope_section=(2, 3, 3))
    text = replace(
        config.text_config,
        vocab_size=512,
        vision_vocab_size=96,
        hidden_size=1024,
        intermediate_size=128,
        num_hidden_layers=layers,
        pad_token_id=501,
        eos_token_id=65,
        rope_parameters=rope,
    )
    vision = replace(config.vision_config, depth=2, hidden_size=64, intermediate_size=128, num_heads=2, image_size=128)
    vq = replace(config.vq_config, embed_dim=32, num_embeddings=64, latent_channels=64)
    ids = {"image_token_id": 500, "image_start_token_id": 64, "image_end_token_id": 65}
    return replace(config, text_config=text, vision_config=vision, vq_config=vq, **ids)


def glyph_config() -> GlyphConfig:
    return replace(release.GLYPH, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_heads=3)


def dit_config() -> DitConfig:
    return replace(
        release.DIT,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=32,
        text_embed_dim=48,
        time_embed_dim=32,
        condition_dim=16,
        prior_vq_quantizer_codebook_size=64,
    )


def vae_config() -> VaeConfig:
    return replace(release.VAE, block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8)
