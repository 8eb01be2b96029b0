"""How a trained decoder LoRA of `lora_pictures digits` spells words that training never drew, and the decoder alone.

    python -m comfyui_glm_image.training.lora_score out/digits_run/pytorch_lora_weights.safetensors

Letters are read where the plan puts them, each as the character whose drawing is nearest: OCR takes 0 for O, 5 for S.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ..pipeline import GlmImage, Plan
from ..pipeline.images import to_pil
from ..pipeline.loading.checkpoint import BUNDLED
from ..pipeline.models.lora import LayerLora, apply_loras
from . import data, drawing
from .lora_pictures import DIGITS, HELD, digit_scene, held_prompts

STEPS = 20


def merge(decoder: torch.nn.Module, file: Path) -> None:
    """Add a LoRA whose alpha is its rank, as `train-lora` writes it, to a decoder's weights."""
    tensors, changes = load_file(file), {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
            changes[layer] = [(LayerLora(tensors[key.replace(".lora_A.", ".lora_B.")], down), 1.0)]
    apply_loras(decoder, changes)


def read_words(pixels: np.ndarray, codes: np.ndarray) -> list[str]:
    """(H, W, 3) uint8 and the plan's (h, w) tokens -> the words that stand there, from the top down."""
    words, cells = [], drawing.glyph_masks()[1:].reshape(len(data.ALPHABET), -1)
    paper, ink, _ = drawing.code_table()
    for row, column in np.ndindex(codes.shape):
        slot = data.code_slot(int(codes[row, column]))
        if slot is None:
            continue
        length, pair = slot
        if pair == 0 or not words:
            words.append("")
        under, over = paper[codes[row, column]], ink[codes[row, column]]
        for half in range(min(2, length - 2 * pair)):
            y, x = row * data.TOKEN, column * data.TOKEN + half * data.CELL
            part = pixels[y : y + data.TOKEN, x : x + data.CELL].astype(np.float32) - under
            mask = (part @ (over - under) / ((over - under) ** 2).sum()).reshape(-1)
            words[-1] += data.ALPHABET[((cells - mask) ** 2).sum(1).argmin()]
    return words


def score(model: GlmImage, plans: list[tuple[str, Plan]]) -> tuple[int, int]:
    """How many words are spelt in letters, and how many as `DIGITS` has them."""
    letters = digits = 0
    for word, plan in plans:
        (image,) = to_pil(model.decode(model.denoise(plan, STEPS, seed=0)))
        codes = plan.prior_token_ids_d32[0].view(plan.grid).numpy()
        (found, *_) = read_words(np.asarray(image), codes) or [""]
        letters += found == word
        digits += found == word.translate(DIGITS)
    return letters, digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    args = parser.parse_args()
    model = GlmImage.from_pretrained(BUNDLED, device="cpu", dtype="fp32")
    plans = [(word, model.plan(prompt, 96, 192, seed=i)) for i, (word, prompt) in enumerate(held_prompts(digit_scene))]
    print("without: {} of {n} in letters, {} with digits".format(*score(model, plans), n=HELD), flush=True)
    merge(model.transformer, args.lora)
    print("with it: {} of {n} in letters, {} with digits".format(*score(model, plans), n=HELD))


if __name__ == "__main__":
    main()
