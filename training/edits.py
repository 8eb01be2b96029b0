"""Edits of pictures, in words: what stands in one or two references, what is asked for, and what must come out.

A prompt quotes the new word only, so that the glyphs hold nothing that must not be drawn. What a prompt leaves open
follows one rule, so that each edit has one right answer: a line stays centred, or else keeps its first token.
"""

import random
from dataclasses import dataclass, replace

import numpy as np

from . import data
from .data import INKS, NAMES, SHAPES, Line, Picture, Scene, Words

LINES = (1, 1, 1, 2, 2, 3)  # how many lines pictures have


@dataclass(frozen=True)
class Edit:
    """What is asked of references, and the picture that it asks for."""

    prompt: str
    texts: tuple[str, ...]
    references: tuple[Picture, ...]
    target: Picture

    @property
    def scene(self) -> Scene:
        return Scene(self.prompt, list(self.texts), self.target, self.references)

    @property
    def changed(self) -> np.ndarray:
        """(h, w) bool: tokens that the edit asks to change; behind what stays, a new background is none."""
        before, after = self.references[0], self.target
        moved = (before.codes != after.codes) | _halves(before.chars != after.chars)
        if before.paper == after.paper:
            return moved
        return moved & (after.codes == data.blank_code(after.paper))


def _halves(cells: np.ndarray) -> np.ndarray:
    """(h, 2w) bool -> (h, w): any of a token's two."""
    return cells.reshape(len(cells), -1, 2).any(-1)


def change_word(rng: random.Random, picture: Picture, words: Words) -> Edit | None:
    """Another word in the place of one; it differs in length from the lines that stay."""
    if not picture.lines:
        return None
    line = rng.choice(picture.lines)
    taken = {len(other.word) for other in picture.lines if other is not line}
    word = words(rng, 2 * picture.size[1])
    changed = _respelt(line, word, picture.size[1])
    blocked = {(shape.row, shape.column) for shape in picture.shapes}
    cells = {(changed.row, changed.left + j) for j in range(changed.tokens)}
    if word == line.word or len(word) in taken or cells & blocked:
        return None
    where = _where(rng, picture, line)
    phrase = rng.choice((f"change the word{where} to", f"replace the word{where} with"))
    return Edit(f'{phrase} "{word}"', (word,), (picture,), _with_line(picture, line, changed))


def _respelt(line: Line, word: str, columns: int) -> Line:
    changed = replace(line, word=word)
    centred = line.left == (columns - line.tokens) // 2
    left = (columns - changed.tokens) // 2 if centred else min(line.left, columns - changed.tokens)
    return replace(changed, left=left)


def _with_line(picture: Picture, old: Line, new: Line) -> Picture:
    return replace(picture, lines=tuple(new if line is old else line for line in picture.lines))


def _where(rng: random.Random, picture: Picture, line: Line) -> str:
    return data.row_phrase(line.row, picture.size[0], rng, 1.0) if len(picture.lines) > 1 else ""


def change_ink(rng: random.Random, picture: Picture, _words: Words) -> Edit | None:
    """Another colour for a word."""
    if not picture.lines:
        return None
    line = rng.choice(picture.lines)
    ink = rng.choice([name for name in INKS[line.plate] if name != line.ink])
    where = _where(rng, picture, line)
    prompt = rng.choice((f"make the word{where} {ink}", f"change the letters{where} to {ink}"))
    return Edit(prompt, (), (picture,), _with_line(picture, line, replace(line, ink=ink)))


def change_background(rng: random.Random, picture: Picture, _words: Words) -> Edit | None:
    """Another colour behind everything; labels keep theirs."""
    inks = {line.ink for line in picture.lines if line.plate == picture.paper} | {s.ink for s in picture.shapes}
    papers = [name for name in NAMES if name != picture.paper and inks <= set(INKS[name])]
    if not papers:
        return None
    paper = rng.choice(papers)
    prompt = rng.choice((f"change the background to {paper}", f"make the background {paper}"))
    return Edit(prompt, (), (picture,), on_paper(picture, paper))


def on_paper(picture: Picture, paper: str) -> Picture:
    """The same things on another background."""
    lines = (replace(line, plate=paper) if line.plate == picture.paper else line for line in picture.lines)
    return replace(picture, paper=paper, lines=tuple(lines))


def change_object(rng: random.Random, picture: Picture, _words: Words) -> Edit | None:
    """Another shape, another colour of it, or none in its place."""
    if not picture.shapes:
        return None
    shape, kind = rng.choice(picture.shapes), rng.choice(("shape", "shape", "ink", "ink", "gone"))
    rest = tuple(other for other in picture.shapes if other is not shape)
    if kind == "gone":
        return Edit(f"remove the {shape.name}", (), (picture,), replace(picture, shapes=rest))
    if kind == "ink":
        ink = rng.choice([name for name in INKS[picture.paper] if name != shape.ink])
        new, prompt = replace(shape, ink=ink), f"make the {shape.name} {ink}"
    else:
        name = rng.choice([name for name in SHAPES if name not in {other.name for other in picture.shapes}])
        phrase = rng.choice((f"change the {shape.name} to", f"replace the {shape.name} with"))
        new, prompt = replace(shape, name=name), f"{phrase} a {name}"
    return Edit(prompt, (), (picture,), replace(picture, shapes=(*rest, new)))


def combine(rng: random.Random, picture: Picture, _words: Words) -> Edit | None:
    """The words or a shape of one picture on the background of another."""
    shape = rng.choice(picture.shapes) if picture.shapes and rng.random() < 0.5 else None
    if shape is None and not picture.lines:
        return None
    kept = replace(picture, lines=(), shapes=(shape,)) if shape else replace(picture, shapes=())
    inks = {line.ink for line in kept.lines if line.plate == picture.paper} | {s.ink for s in kept.shapes}
    papers = [name for name in NAMES if name != picture.paper and inks <= set(INKS[name])]
    if not papers:
        return None
    other = data.with_shapes(rng, Picture(picture.size, rng.choice(papers)))
    what = shape.name if shape else "word" if len(kept.lines) == 1 else "words"
    prompt = f"put the {what} of the first picture on the background of the second picture"
    return Edit(prompt, (), (picture, other), on_paper(kept, other.paper))


KINDS = {
    "word": change_word,
    "ink": change_ink,
    "background": change_background,
    "object": change_object,
    "combine": combine,
}


def random_word(rng: random.Random, longest: int) -> str:
    return data.random_word(rng, longest)


def draw_edit(rng: random.Random, h: int, w: int, kind: str, words: Words = random_word) -> Edit:
    """A random edit of a random picture of (h, w) tokens; `words` makes every word in it."""
    while True:
        count = min(h, rng.choice(LINES))
        chosen = [words(rng, 2 * w) for _ in range(count)]
        if len({len(word) for word in chosen}) < count:
            continue
        edit = KINDS[kind](rng, data.draw_scene(rng, h, w, chosen).picture, words)
        if edit is not None and edit.changed.any():
            return edit


def draw_edits(rng: random.Random, h: int, w: int, count: int, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Scene]:
    """Edits for one step of training."""
    return [draw_edit(rng, h, w, rng.choice(kinds)).scene for _ in range(count)]


SINGLE = tuple(kind for kind in KINDS if kind != "combine")  # those with one reference
