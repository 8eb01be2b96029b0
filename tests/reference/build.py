"""Random GLM-Image checkpoints in the hub's layout by the reference libraries: ground truth of the parity tests.

Needs transformers 5.23 and diffusers 0.42.1. The weights depend on the seed and the names alone, so that every
machine makes the same checkpoint.
Usage: python tests/reference/build.py OUT [--shape wide]
"""

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    GenerationConfig,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil


@dataclass(frozen=True)
class Shape:
    """One configuration; `sections` splits a quarter of the planner's head width over (time, row, column)."""

    codebook: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    sections: tuple[int, int, int]
    vit_hidden: int
    vit_heads: int
    image_size: int
    glyph_hidden: int
    glyph_heads: int
    dit_layers: int
    dit_heads: int
    dit_head_dim: int
    vae_channels: tuple[int, ...]
    vae_layers: int


SHAPES = {
    "plain": Shape(64, 128, 3, 4, 2, (2, 3, 3), 48, 4, 512, 48, 4, 2, 2, 32, (16, 16, 32, 32), 2),
    "wide": Shape(100, 96, 2, 6, 1, (2, 1, 1), 32, 2, 256, 32, 2, 3, 3, 16, (8, 16, 16, 24), 1),
    "deep": Shape(48, 64, 4, 2, 2, (4, 2, 2), 64, 8, 384, 64, 2, 4, 1, 64, (16, 24, 32, 32), 3),
}

TEXT_TOKENS = ("<|endoftext|>", "[gMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>", "<|image|>")


def build(out: Path, shape: Shape = SHAPES["plain"], seed: int = 0) -> GlmImagePipeline:
    """Make the pipeline, save it to `out` and return it."""
    vocabulary, tokenizer = _tokenizer(shape)
    planner = _planner(shape, vocabulary)
    glyph = T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=shape.glyph_hidden,
            d_kv=12,
            d_ff=2 * shape.glyph_hidden,
            num_layers=2,
            num_heads=shape.glyph_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    transformer = GlmImageTransformer2DModel(
        num_layers=shape.dit_layers,
        attention_head_dim=shape.dit_head_dim,
        num_attention_heads=shape.dit_heads,
        text_embed_dim=shape.glyph_hidden,
        time_embed_dim=32,
        condition_dim=16,
        prior_vq_quantizer_codebook_size=shape.codebook,
    )
    for model, spread, bias in ((planner, 0.15, 0.1), (glyph, 0.2, 0.1), (transformer, 0.12, 0.05)):
        _fill(model, spread, bias, seed)
    pipeline = GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=_processor(shape, tokenizer),
        text_encoder=glyph.eval(),
        vision_language_encoder=planner.eval(),
        vae=_vae(shape, seed).eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000,
            use_dynamic_shifting=True,
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            max_image_seq_len=4096,
            shift=1.0,
            time_shift_type="linear",
        ),
    )
    pipeline.save_pretrained(out)
    return pipeline


def _fill(model: torch.nn.Module, spread: float, bias: float, seed: int) -> None:
    """Draw every parameter from its own name's generator; norms stay near one so that signals neither die nor grow."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and not name.endswith("bias")
        with torch.no_grad():
            parameter.copy_(1 + 0.1 * noise if is_norm else noise * (spread if parameter.ndim > 1 else bias))


def _tokenizer(shape: Shape) -> tuple[dict[str, int], PreTrainedTokenizerFast]:
    """Image tokens first, then bytes, then control tokens: the release's order, without its merges."""
    images = [f"<|dit_token_{i}|>" for i in range(shape.codebook + 16)]
    names = [*images, *sorted(pre_tokenizers.ByteLevel.alphabet()), *TEXT_TOKENS]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in [*images, *TEXT_TOKENS]]
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token=f"<|dit_token_{shape.codebook}|>",
        eos_token=f"<|dit_token_{shape.codebook + 1}|>",
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
    )
    return vocabulary, fast


def _processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> GlmImageProcessor:
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        f"<|dit_token_{shape.codebook}|><|image|><|dit_token_{shape.codebook + 1}|>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    images = GlmImageImageProcessorPil(
        patch_size=16,
        merge_size=1,
        temporal_patch_size=1,
        size={"shortest_edge": 12544, "longest_edge": 9633792},
    )
    return GlmImageProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


def _planner(shape: Shape, vocabulary: dict[str, int]) -> GlmImageForConditionalGeneration:
    start, end, pad = shape.codebook, shape.codebook + 1, vocabulary["<|endoftext|>"]
    config = GlmImageConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": shape.hidden,
            "intermediate_size": 2 * shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 8192,
            "vision_vocab_size": shape.codebook + 16,
            "pad_token_id": pad,
            "eos_token_id": end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": list(shape.sections),
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": shape.vit_hidden,
            "num_heads": shape.vit_heads,
            "intermediate_size": 2 * shape.vit_hidden,
            "image_size": shape.image_size,
            "patch_size": 16,
        },
        vq_config={"embed_dim": 32, "num_embeddings": shape.codebook, "latent_channels": shape.vit_hidden},
        image_token_id=vocabulary["<|image|>"],
        image_start_token_id=start,
        image_end_token_id=end,
    )
    model = GlmImageForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.9,
        top_p=0.75,
        top_k=shape.codebook + 16,
        eos_token_id=end,
        pad_token_id=pad,
        suppress_tokens=list(range(shape.codebook, shape.codebook + 16)),
    )
    return model


def _vae(shape: Shape, seed: int) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(shape.vae_channels),
        layers_per_block=shape.vae_layers,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=1024,
        scaling_factor=1.0,
        force_upcast=True,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        latents_mean=[round(-0.3 + 0.04 * i, 2) for i in range(16)],
        latents_std=[round(0.7 + 0.05 * i, 2) for i in range(16)],
    )
    for name, parameter in vae.named_parameters():
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        is_norm = parameter.ndim == 1 and not name.endswith("bias")
        with torch.no_grad():
            parameter.copy_(1 + 0.1 * noise if is_norm else noise * (fan_in**-0.5 if fan_in else 0.05))
    return vae


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--shape", choices=SHAPES, default="plain")
    chosen = arguments.parse_args()
    build(chosen.out, SHAPES[chosen.shape])
