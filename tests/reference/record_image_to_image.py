"""Record image-to-image of the reference, whose current release cannot run it, for the parity test.

Run in an environment of its own (diffusers 0.37.1, transformers 5.2.0, torch 2.13.0) on a folder that
tests/reference/build.py made with the current libraries:
    python tests/reference/record_image_to_image.py CHECKPOINT tests/reference/image_to_image.safetensors
The pipeline samples with top_k=1, which is greedy, so that tokens can be compared one by one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import GlmImagePipeline
from PIL import Image
from safetensors.torch import save_file

HEIGHT, WIDTH, STEPS = 96, 128, 5
PROMPT = "put 'HI' on the \"sign\""
REFERENCE_SIZES = {"one": [(128, 160)], "two": [(128, 160), (192, 128)]}  # (height, width)


def reference_image(height: int, width: int) -> Image.Image:
    """A smooth colour pattern that needs no file; the test draws the same."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 3 + columns, rows + columns * 2, (rows * columns) // 7]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def noise() -> torch.Tensor:
    return torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def record(pipeline: GlmImagePipeline, sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    images = [reference_image(*size) for size in sizes]
    ids, image_ids, grids = pipeline.generate_prior_tokens(PROMPT, HEIGHT, WIDTH, image=[images])
    latents = pipeline(
        PROMPT,
        image=images,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        guidance_scale=1.5,
        latents=noise(),
        prior_token_ids=ids,
        prior_token_image_ids=image_ids,
        source_image_grid_thw=grids,
        output_type="latent",
    ).images
    return {
        "prior_token_ids": ids,
        "reference_token_ids": torch.cat(image_ids),
        "reference_grids": torch.cat(grids),
        "latents": latents,
    }


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("out", type=Path)
    chosen = arguments.parse_args()
    pipeline = GlmImagePipeline.from_pretrained(chosen.checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vision_language_encoder.generation_config.top_k = 1
    recorded = {}
    for name, sizes in REFERENCE_SIZES.items():
        recorded |= {f"{name}.{key}": value.contiguous() for key, value in record(pipeline, sizes).items()}
    save_file(recorded, chosen.out)
