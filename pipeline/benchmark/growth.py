"""`glm-image bench --growth`: how cost grows with the tokens of a plan and with the pixels of an image.

`python -m comfyui_glm_image.training growth` draws what this measures.
"""

from collections.abc import Sequence

from .stages import Case

TOKENS = (64, 128, 256, 512, 1024)
SIDES = ((128, 128), (256, 256), (384, 384), (512, 512), (768, 768))  # pixels
BY_TOKENS, BY_PIXELS = ("planner decode",), ("decoder step", "vae decode")
STAGES = BY_TOKENS + BY_PIXELS
LARGEST = 1024  # pixels; a plan of this side has more tokens than are asked for


def cases(prompt: int, sides: Sequence[tuple[int, int]] | None = None) -> list[tuple[str, Case]]:
    """Stages with what they are measured on: the planner for each number of tokens, the others for each size."""
    planned = [(name, Case(LARGEST, LARGEST, 1, prompt, tokens)) for name in BY_TOKENS for tokens in TOKENS]
    drawn = [(name, Case(height, width, 1, prompt)) for name in BY_PIXELS for height, width in sides or SIDES]
    return planned + drawn
