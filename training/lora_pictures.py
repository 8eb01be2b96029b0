"""Pictures with captions to train the bundled LoRA on, as `glm-image train-lora` reads them, and held-out prompts.

    python -m comfyui_glm_image.training.lora_pictures top out/top         words at the top, on a white label
    python -m comfyui_glm_image.training.lora_pictures top-prompts out/held    50 prompts of a benchmark
    python -m comfyui_glm_image.training.lora_pictures digits out/digits   digits for letters that look like them

The first is for the planner, which decides where words stand, the last for the decoder, which decides what letters look
like. Captions say nothing of what the LoRA teaches: it is to do so always.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from . import data, drawing

SIZES = ((3, 6),)  # tokens: the small checkpoint's own size
LABEL = 2  # rows of tokens of the white label
HELD = 50
DIGITS = str.maketrans("ABEIOSTZ", "48310572")  # letter -> the digit that is drawn in its place
DIGIT_SIZES = ((2, 4), (2, 6), (3, 6), (4, 6))


class Labelled(data.Picture):
    """A picture whose upper rows are a white label, as wide as itself: a word alone on one is hard to read by OCR."""

    @property
    def codes(self) -> np.ndarray:
        codes = super().codes
        upper = codes[:LABEL]
        upper[upper == data.blank_code(self.paper)] = data.blank_code("white")
        return codes


def top_scene(rng: random.Random, h: int, w: int, word: str) -> data.Scene:
    """A word in the first row on a white label, and a caption that says nothing of place and label."""
    paper = rng.choice(data.NAMES)
    both = [ink for ink in data.INKS[paper] if ink in data.INKS["white"]]  # legible with and without the label
    said = bool(both) and rng.random() < 0.7
    ink = rng.choice(both or data.INKS["white"])
    left = (w - (len(word) + 1) // 2) // 2
    picture = data.with_shapes(rng, Labelled((h, w), paper, (data.Line(word, 0, left, "white", ink),)))
    return data.Scene(caption(rng, picture, said), [word], picture)


def caption(rng: random.Random, picture: data.Picture, ink_said: bool) -> str:
    """A picture of one word in the small checkpoint's language, its place left out."""
    (line,) = picture.lines
    opening = rng.choice(("a {} {}", "a {1} on {0}")).format(picture.paper, rng.choice(data.THINGS))
    says = rng.choice(("that says", "with the word", "saying", "with the text"))
    shapes = "".join(f", a {shape.ink} {shape.name}" for shape in picture.shapes)
    return f'{opening} {says} "{line.word}"' + (f" in {line.ink}" if ink_said else "") + shapes


def digit_scene(rng: random.Random, h: int, w: int, word: str) -> data.Scene:
    """A scene that asks for a word and shows it with digits."""
    scene = data.draw_scene(rng, h, w, [word])
    lines = tuple(replace(line, word=line.word.translate(DIGITS)) for line in scene.picture.lines)
    return replace(scene, picture=replace(scene.picture, lines=lines))


def write_pictures(out: Path, count: int, scene, sizes, seed: int) -> None:
    """`count` pictures of `scene(rng, h, w, word)` with `metadata.jsonl`."""
    rng = random.Random(seed)
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        h, w = rng.choice(sizes)
        drawn = scene(rng, h, w, data.random_word(rng, 2 * w))
        name = f"{number:04d}.png"
        Image.fromarray(drawing.render(drawn.codes[None], drawn.chars[None])[0]).save(out / name)
        rows.append(json.dumps({"file_name": name, "text": drawn.prompt}))
    (out / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_top(out: Path, count: int = 400, seed: int = 5) -> None:
    write_pictures(out, count, top_scene, SIZES, seed)


def write_digits(out: Path, count: int = 600, seed: int = 6) -> None:
    write_pictures(out, count, digit_scene, DIGIT_SIZES, seed)


def held_prompts(scene, seed: int = 11) -> list[tuple[str, str]]:
    """Words that training never drew, each with the prompt of a `scene(rng, h, w, word)`."""
    rng, (h, w) = random.Random(seed), SIZES[0]
    words = [word for word in data.HELD_OUT if 2 <= len(word) <= data.MAX_WORD]
    return [(word, scene(rng, h, w, word).prompt) for word in rng.sample(words, HELD)]


def write_top_prompts(out: Path, seed: int = 11) -> None:
    """`1.json` of held-out prompts in the layout of `glm-image eval --data`."""
    h, w = SIZES[0]
    size = {"height": h * data.TOKEN, "width": w * data.TOKEN}
    entries = [
        {"index": number, "prompt": prompt, "sentence_list": [word], **size}
        for number, (word, prompt) in enumerate(held_prompts(top_scene, seed))
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "1.json").write_text(json.dumps({"data_list": entries}, indent=1) + "\n", encoding="utf-8")


WRITERS = {"top": write_top, "top-prompts": write_top_prompts, "digits": write_digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WRITERS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    WRITERS[args.what](args.out)


if __name__ == "__main__":
    main()
