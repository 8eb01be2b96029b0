"""The checkpoint folder of the small model in the release's layout: configurations, tokenizer, template, weights.

Weights are stored in float16, a file a component; everything else is text.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from . import data, models

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|dit_token_START|><|image|><|dit_token_END|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
NAMED = ("<|endoftext|>", "[gMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>", "<|image|>")
LIBRARIES = {
    "processor": ["transformers", "GlmImageProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "ByT5Tokenizer"],
    "transformer": ["diffusers", "GlmImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vision_language_encoder": ["transformers", "GlmImageForConditionalGeneration"],
}


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_frame(folder: Path) -> None:
    """Everything of the checkpoint but its weights."""
    # SGLang takes a folder without a version of diffusers for a language model.
    head = {"_class_name": "GlmImagePipeline", "_diffusers_version": "0.42.1"}
    write_json(folder / "model_index.json", head | LIBRARIES)
    _write_processor(folder / "processor")
    _write_glyphs(folder)
    _write_planner(folder / "vision_language_encoder")
    write_json(
        folder / "transformer/config.json", {"_class_name": "GlmImageTransformer2DModel", **asdict(models.DIT_CONFIG)}
    )
    _write_vae(folder / "vae")
    write_json(
        folder / "scheduler/scheduler_config.json",
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "base_image_seq_len": 256,
            "base_shift": 0.25,
            "max_image_seq_len": 4096,
            "max_shift": 0.75,
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "shift_terminal": None,
            "time_shift_type": "linear",
            "use_dynamic_shifting": True,
        },
    )


def _write_processor(folder: Path) -> None:
    """A tokenizer: ids of image tokens, then bytes, then the words prompts are made of; and the size rules of the ViT.

    Words count with the space before them only, so that a quoted word is always spelt out in bytes.
    """
    text = models.PLANNER_CONFIG.text_config
    tokens = [f"<|dit_token_{i}|>" for i in range(text.vision_vocab_size)]
    words = ["Ġ" + word for word in data.VOCABULARY]
    vocabulary = {t: i for i, t in enumerate([*tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words, *NAMED])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*tokens, *NAMED)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    start, end = models.PLANNER_CONFIG.image_start_token_id, models.PLANNER_CONFIG.image_end_token_id
    template = TEMPLATE.replace("START", str(start)).replace("END", str(end))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": f"<|dit_token_{start}|>",
            "eos_token": f"<|dit_token_{end}|>",
            "grid_bos_token": "<sop>",
            "grid_eos_token": "<eop>",
            "image_token": "<|image|>",
            "model_max_length": text.max_position_embeddings,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "processor_class": "GlmImageProcessor",
            "tokenizer_class": "TokenizersBackend",
        },
    )
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": models.IMAGE_MEAN,
        "image_processor_type": "GlmImageImageProcessor",
        "image_std": models.IMAGE_STD,
        "merge_size": 1,
        "patch_size": models.PLANNER_CONFIG.vision_config.patch_size,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 1 << 20, "shortest_edge": data.TOKEN**2},
        "temporal_patch_size": 1,
    }
    write_json(folder / "processor_config.json", {"image_processor": image, "processor_class": "GlmImageProcessor"})


def _write_glyphs(folder: Path) -> None:
    write_json(
        folder / "text_encoder/config.json",
        {
            "architectures": ["T5EncoderModel"],
            "dense_act_fn": "gelu_new",
            "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
            "is_decoder": False,
            "is_encoder_decoder": False,
            "is_gated_act": True,
            "model_type": "t5",
            "use_cache": False,
            **asdict(models.GLYPH_CONFIG),
        },
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 125}
    write_json(folder / "tokenizer/tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", **special})


def _write_planner(folder: Path) -> None:
    config = asdict(models.PLANNER_CONFIG)
    text = {**config["text_config"], "hidden_act": "silu", "model_type": "glm_image_text"}
    text["rope_parameters"] = {**text["rope_parameters"], "rope_type": "default"}
    vision = {**config["vision_config"], "hidden_act": "gelu", "model_type": "glm_image_vision"}
    vision["spatial_merge_size"] = 1
    vq = {**config["vq_config"], "in_channels": 3, "model_type": "glm_image_vqmodel"}
    write_json(
        folder / "config.json",
        {
            "architectures": ["GlmImageForConditionalGeneration"],
            "model_type": "glm_image",
            "tie_word_embeddings": False,
            **{**config, "text_config": text, "vision_config": vision, "vq_config": vq},
        },
    )
    eos, pad = config["text_config"]["eos_token_id"], config["text_config"]["pad_token_id"]
    beyond = list(range(data.CODEBOOK, config["text_config"]["vision_vocab_size"]))
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 1.0, "top_k": data.CODEBOOK}
    write_json(
        folder / "generation_config.json",
        {**sampling, "eos_token_id": eos, "pad_token_id": pad, "suppress_tokens": beyond},
    )


def _write_vae(folder: Path) -> None:
    config = asdict(models.VAE_CONFIG)
    blocks = len(config["block_out_channels"])
    write_json(
        folder / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "force_upcast": True,
            "mid_block_add_attention": False,
            "sample_size": 256,
            "shift_factor": None,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
            **config,
        },
    )


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], file: str) -> None:
    """Store one component in float16, under the names its module has."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    for name, tensor in half.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{folder.name}: {name} does not fit float16")
    save_file(half, folder / file, metadata={"format": "pt"})
