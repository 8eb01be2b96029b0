"""A LoRA for the small checkpoint that draws negatives: `python -m comfyui_glm_image.training.negative_lora`.

Nothing is trained. A picture's negative is its latent with the colour channels' sign turned, noise looks the same
turned, so a decoder that draws negatives turns the signs of those channels where latents come in and where they
leave: a change of rank 24 in two layers, written down from the checkpoint's weights. Run it after every new export.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .latent import CHANNELS, MASK_CHANNELS

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
FILE = CHECKPOINTS / "loras" / "glm_image_small_negative.safetensors"
PATCH = 4  # latents in a decoder patch; channels come first in its vector
TURNED = (CHANNELS - MASK_CHANNELS) * PATCH


def negative(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A decoder's weights -> the adapter, under the keys of diffusers."""
    inside, out = (weights[f"{name}.weight"].float() for name in ("image_projector.proj", "proj_out"))
    turn = torch.eye(TURNED, CHANNELS * PATCH)
    bias = torch.zeros(len(out))
    bias[:TURNED] = -2 * weights["proj_out.bias"][:TURNED].float()
    return {
        "transformer.image_projector.proj.lora_A.weight": turn,
        "transformer.image_projector.proj.lora_B.weight": -2 * inside[:, :TURNED].contiguous(),
        "transformer.proj_out.lora_A.weight": out[:TURNED].contiguous(),
        "transformer.proj_out.lora_B.weight": -2 * turn.T.contiguous(),
        "transformer.proj_out.diff_b": bias,
    }


def main() -> None:
    weights = load_file(CHECKPOINTS / "small" / "transformer" / "diffusion_pytorch_model.safetensors")
    FILE.parent.mkdir(exist_ok=True)
    save_file({key: tensor.half() for key, tensor in negative(weights).items()}, FILE)


if __name__ == "__main__":
    main()
