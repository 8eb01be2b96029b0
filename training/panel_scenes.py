"""Scenes of 256 px a side: street signs, shop windows, book covers and menus, of the same tokens as other pictures.

Panels of plain tokens make what stands behind the words. A text has one to three words, each on a line of its own; the
glyph encoder gets the text as it is quoted. All words of a picture differ in length, as plan tokens tell them apart by
it.
"""

import random

from . import data
from .data import INKS, NAMES, SHAPES, Line, Panel, Picture, Scene, Shape, Words

SIDES = (8, 8)  # tokens
COVER = (8, 6)
CARD = (3, 6)
SUNSET = ("purple", "red", "orange", "yellow")  # from the top down


class Canvas:
    """A picture in the making: panels, lines and shapes by token, and words that differ in length."""

    def __init__(self, rng: random.Random, size: tuple[int, int], paper: str, words: Words):
        self.rng, self.size, self.paper, self.words = rng, size, paper, words
        self.panels: list[Panel] = []
        self.lines: list[Line] = []
        self.shapes: list[Shape] = []
        self.texts: list[str] = []
        self.lengths: set[int] = set()

    def panel(self, row: int, left: int, height: int, width: int, colour: str) -> None:
        self.panels.append(Panel(row, left, height, width, colour))

    def text(self, count: int, row: int, plate: str, ink: str, left: int = 0, width: int | None = None) -> str:
        """Write `count` new words on rows from `row`, centred on `width` tokens from `left`; returns them quoted."""
        width = width or self.size[1]
        words = [self._new_word(2 * width) for _ in range(count)]
        for i, word in enumerate(words):
            start = left + (width - (len(word) + 1) // 2) // 2
            self.lines.append(Line(word, row + i, start, plate, ink))
        self.texts.append(" ".join(words))
        return f'"{self.texts[-1]}"'

    def _new_word(self, longest: int) -> str:
        while True:
            word = self.words(self.rng, longest)
            if len(word) not in self.lengths:
                self.lengths.add(len(word))
                return word

    def shape(self, row: int, column: int, plate: str) -> str:
        """A random shape on a plain token of `plate`; returns its phrase."""
        name, ink = self.rng.choice(SHAPES), self.rng.choice(INKS[plate])
        self.shapes.append(Shape(name, row, column, ink))
        return f"{a(ink)} {name}"

    def scene(self, prompt: str) -> Scene:
        size = self.size
        picture = Picture(size, self.paper, tuple(self.lines), tuple(self.shapes), tuple(self.panels))
        return Scene(prompt, self.texts, picture)


def other_than(rng: random.Random, *taken: str) -> str:
    return rng.choice([name for name in NAMES if name not in taken])


def a(colour: str) -> str:
    return f"an {colour}" if colour == "orange" else f"a {colour}"


def street_sign(rng: random.Random, words: Words) -> Scene:
    """A sign on a pole, under a sky of one colour or a sunset."""
    sky = rng.choice((*NAMES, "sunset", "sunset"))
    bands = SUNSET if sky == "sunset" else (sky,)
    paper, ground = bands[-1], other_than(rng, bands[-1])
    pole = other_than(rng, ground, *bands)
    colour = other_than(rng, pole, *bands)
    ink, count = rng.choice(INKS[colour]), rng.choice((1, 1, 2))
    canvas = Canvas(rng, SIDES, paper, words)
    for row, band in enumerate(bands[:-1]):
        canvas.panel(2 * row, 0, 2, 8, band)
    canvas.panel(7, 0, 1, 8, ground)
    canvas.panel(4, 3, 3, 2, pole)
    canvas.panel(2 - count, 1, count + 2, 6, colour)
    text = canvas.text(count, 3 - count, colour, ink, 1, 6)
    above = "a sunset" if sky == "sunset" else f"{a(sky)} sky"
    prompt = f"{a(colour)} street sign that says {text} in {ink} on {a(pole)} pole, under {above}, {ground} ground"
    return canvas.scene(prompt)


def shop_window(rng: random.Random, words: Words) -> Scene:
    """A wall with an awning, a window with goods, perhaps a label in it."""
    wall = rng.choice(NAMES)
    awning, glass = other_than(rng, wall), other_than(rng, wall)
    ink = rng.choice(INKS[awning])
    canvas = Canvas(rng, SIDES, wall, words)
    canvas.panel(0, 0, 2, 8, awning)
    canvas.panel(3, 1, 4, 6, glass)
    name = canvas.text(1, 1, awning, ink)
    prompt = f"{a(wall)} shop with {a(awning)} awning that says {name} in {ink} and {a(glass)} window"
    if rng.random() < 0.5:
        colour = rng.choice(INKS[glass])
        prompt += f" with the word {canvas.text(1, 4, glass, colour, 1, 6)} in {colour}"
    goods = [canvas.shape(6, column, glass) for column in ((2, 5) if rng.random() < 0.5 else (3,))]
    return canvas.scene(f"{prompt}, {' and '.join(goods)} in it")


def book_cover(rng: random.Random, words: Words) -> Scene:
    """A title of one to three words, a shape, perhaps an author, a spine."""
    paper = rng.choice(NAMES)
    spine, ink = other_than(rng, paper), rng.choice(INKS[paper])
    canvas = Canvas(rng, COVER, paper, words)
    canvas.panel(0, 0, 8, 1, spine)
    title = canvas.text(rng.choice((1, 2, 2, 3)), 1, paper, ink, 1, 5)
    shape = canvas.shape(5, 3, paper)
    prompt = f"{a(paper)} book with {a(spine)} spine and the title {title} in {ink}, {shape}"
    if rng.random() < 0.7:
        colour = rng.choice(INKS[paper])
        prompt += f", the author {canvas.text(1, 6, paper, colour, 1, 5)} in {colour}"
    return canvas.scene(prompt)


def menu(rng: random.Random, words: Words) -> Scene:
    """A heading on a band, and two or three dishes below it."""
    paper = rng.choice(NAMES)
    band, ink = other_than(rng, paper), rng.choice(INKS[paper])
    over = rng.choice(INKS[band])
    canvas = Canvas(rng, SIDES, paper, words)
    canvas.panel(0, 0, 2, 8, band)
    heading = canvas.text(1, 1, band, over)
    dishes = [canvas.text(1, row, paper, ink) for row in rng.choice(((3, 5), (3, 4, 5)))]
    listed = ", ".join(dishes[:-1]) + f" and {dishes[-1]}"
    prompt = f"{a(paper)} menu with the heading {heading} in {over} on {a(band)} band and the dishes {listed} in {ink}"
    return canvas.scene(prompt)


def card(rng: random.Random, words: Words) -> Scene:
    """One text of two or three words on plain paper: the smallest picture that teaches a decoder where words begin.

    It is not for planners: one that had learnt it for ten minutes drew single words twice.
    """
    paper = rng.choice(NAMES)
    ink, count = rng.choice(INKS[paper]), rng.choice((2, 2, 3))
    canvas = Canvas(rng, CARD, paper, words)
    text = canvas.text(count, rng.randint(0, CARD[0] - count), paper, ink)
    return canvas.scene(f"{a(paper)} card that says {text} in {ink}")


KINDS = {"sign": street_sign, "shop": shop_window, "book": book_cover, "menu": menu}
ALIKE = (("sign", "shop", "menu"), ("book",))  # kinds of one size


def draw_cards(rng: random.Random, count: int, words: Words = data.random_word) -> list[Scene]:
    return [card(rng, words) for _ in range(count)]


def draw_scenes(rng: random.Random, count: int, words: Words = data.random_word) -> list[Scene]:
    """`count` scenes of one size."""
    kinds = rng.choices(ALIKE, (3, 1))[0]
    return [KINDS[rng.choice(kinds)](rng, words) for _ in range(count)]


GROUPS = {"scenes of 256 px": draw_scenes, "texts of several words": draw_cards}
