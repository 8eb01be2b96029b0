"""Synthetic pictures of words, signs and shapes on the planner's 32 px grid, with prompts and plans.

A picture is two integer grids: `codes` (h, w), one plan token for every 32x32 px, and `chars` (h, 2w), one
character for every 16x32 px half token (0 is none). A plan token says which background and ink a token has and, where
there is lettering, how many characters the word has and which two of them stand here; it never says which
characters they are. That is left to the glyphs.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

TOKEN = 32
CELL = 16

COLOURS = {
    "red": (200, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 210, 50),
    "green": (30, 140, 70),
    "blue": (40, 80, 200),
    "purple": (120, 50, 160),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
NAMES = tuple(COLOURS)
INKS = {
    "red": ("white", "yellow"),
    "green": ("white", "yellow"),
    "blue": ("white", "yellow"),
    "purple": ("white", "yellow"),
    "black": ("white", "yellow", "orange"),
    "white": ("red", "green", "blue", "purple", "black"),
    "yellow": ("red", "green", "blue", "purple", "black"),
    "orange": ("black", "blue", "purple"),
}
PAIRS = tuple((paper, ink) for paper, inks in INKS.items() for ink in inks)  # readable combinations
SHAPES = ("circle", "square", "triangle", "star", "heart")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?&.-"
LETTERS = ALPHABET[:26]
MAX_WORD = 8
THINGS = ("poster", "sign", "card", "picture", "banner")
_GRAMMAR = "a with the word words text that says saying in letters on label at top bottom middle line and of"
VOCABULARY = (*_GRAMMAR.split(), *COLOURS, *THINGS, *SHAPES)  # what prompts are made of, besides what they quote
CODEBOOK = 640

# slot = (length of the word, which pair of its characters)
SLOTS = tuple((n, j) for n in range(1, MAX_WORD + 1) for j in range((n + 1) // 2))
SHAPE_BASE = len(NAMES)
TEXT_BASE = SHAPE_BASE + len(PAIRS) * len(SHAPES)
assert TEXT_BASE + len(PAIRS) * len(SLOTS) <= CODEBOOK

# Words of the benchmarks: never drawn in training, as are one in 16 of all other strings.
_WORDS = (
    "OPEN STOP HOTEL BREAD COFFEE TAXI PIZZA BANK SHOP MARKET EXIT SALE CAFE GARAGE MUSIC WATER JUICE QUIET ZEBRA FOX "
    "VIDEO HAPPY NORTH SOUTH EAST WEST LIGHT NIGHT DAY SUN MOON KING JAZZ BOOK FILM PARK BUS TRAIN WAY NO YES UP GO "
    "MILK FISH LEMON CHERRY PLUM VIOLET WINTER SPRING HELLO WORLD TEA ICE RED BLUE GREEN HOME NEWS TOYS GIFT LOVE "
    "PEACE SUMMER AUTUMN FRESH WELCOME LIBRARY BAKERY STATION AIRPORT FLOWERS"
)
HELD_OUT = tuple(_WORDS.split())

Words = Callable[[random.Random, int], str]  # (rng, longest) -> a word


def held_out(word: str) -> bool:
    """Whether training must never draw `word`."""
    return word in HELD_OUT or hashlib.md5(word.encode()).digest()[0] % 16 == 0


def blank_code(paper: str) -> int:
    return NAMES.index(paper)


def shape_code(paper: str, ink: str, shape: str) -> int:
    return SHAPE_BASE + PAIRS.index((paper, ink)) * len(SHAPES) + SHAPES.index(shape)


def text_code(paper: str, ink: str, length: int, pair: int) -> int:
    return TEXT_BASE + PAIRS.index((paper, ink)) * len(SLOTS) + SLOTS.index((length, pair))


def code_parts(code: int) -> list[tuple]:
    """What a plan token says, as (kind, value) pairs."""
    if code < SHAPE_BASE:
        return [("paper", NAMES[code])]
    text = code >= TEXT_BASE
    pair, rest = divmod(code - (TEXT_BASE if text else SHAPE_BASE), len(SLOTS if text else SHAPES))
    if pair >= len(PAIRS):
        return [("unused", 0)]
    paper, ink = PAIRS[pair]
    colours = [("paper", paper), ("ink", ink)]
    if not text:
        return [*colours, ("shape", rest)]
    length, index = SLOTS[rest]
    return [*colours, ("length", length), ("index", index), ("slot", rest)]


def code_slot(code: int) -> tuple[int, int] | None:
    """(word length, pair) of a text token, None of any other."""
    pair, slot = divmod(code - TEXT_BASE, len(SLOTS))
    return SLOTS[slot] if 0 <= pair < len(PAIRS) else None


@dataclass(frozen=True)
class Line:
    """A word of a picture: its first token, the colour behind it and its own."""

    word: str
    row: int
    left: int
    plate: str
    ink: str

    @property
    def tokens(self) -> int:
        return (len(self.word) + 1) // 2


@dataclass(frozen=True)
class Shape:
    """A shape of a picture, in the one token it fills."""

    name: str
    row: int
    column: int
    ink: str


@dataclass(frozen=True)
class Panel:
    """A rectangle of plain tokens, behind words and shapes."""

    row: int
    left: int
    height: int
    width: int
    colour: str


@dataclass(frozen=True)
class Picture:
    """What stands where on (h, w) tokens."""

    size: tuple[int, int]
    paper: str
    lines: tuple[Line, ...] = ()
    shapes: tuple[Shape, ...] = ()
    panels: tuple[Panel, ...] = ()  # later ones cover earlier ones

    @property
    def codes(self) -> np.ndarray:
        """(h, w) int64 plan tokens."""
        codes = np.full(self.size, blank_code(self.paper), np.int64)
        for p in self.panels:
            codes[p.row : p.row + p.height, p.left : p.left + p.width] = blank_code(p.colour)
        for line in self.lines:
            for j in range(line.tokens):
                codes[line.row, line.left + j] = text_code(line.plate, line.ink, len(line.word), j)
        for shape in self.shapes:
            under = NAMES[codes[shape.row, shape.column]]
            codes[shape.row, shape.column] = shape_code(under, shape.ink, shape.name)
        return codes

    @property
    def chars(self) -> np.ndarray:
        """(h, 2w) int64, index into ALPHABET + 1."""
        chars = np.zeros((self.size[0], 2 * self.size[1]), np.int64)
        for line in self.lines:
            letters = [ALPHABET.index(letter) + 1 for letter in line.word]
            chars[line.row, 2 * line.left : 2 * line.left + len(letters)] = letters
        return chars


@dataclass
class Scene:
    """One picture to draw: its prompt, the strings that the glyph encoder gets, its grids, and what it is made from.

    `references` are the pictures that the prompt speaks of, none for text to image.
    """

    prompt: str
    texts: list[str]
    picture: Picture
    references: tuple[Picture, ...] = ()

    @cached_property
    def codes(self) -> np.ndarray:
        return self.picture.codes

    @cached_property
    def chars(self) -> np.ndarray:
        return self.picture.chars


def random_word(rng: random.Random, longest: int, plain: float = 0.85) -> str:
    """A string training may draw: letters, or with digits and marks in one of `1 - plain` cases."""
    longest = min(longest, MAX_WORD)
    while True:
        letters = LETTERS if rng.random() < plain else ALPHABET
        word = "".join(rng.choice(letters) for _ in range(rng.randint(1 + (rng.random() < 0.9), longest)))
        if not held_out(word):
            return word


def held_word(rng: random.Random, longest: int) -> str:
    """A word that training never draws."""
    return rng.choice([word for word in HELD_OUT if 2 <= len(word) <= min(longest, MAX_WORD)])


def row_phrase(row: int, rows: int, rng: random.Random, said: float) -> str:
    """Where a line stands, in words; empty leaves the place to the planner."""
    if rows == 1 or rng.random() > said:
        return ""
    if row == 0:
        return " at the top"
    if row == rows - 1:
        return " at the bottom"
    return " in the middle" if rows == 3 else f" on line {row + 1}"


def _start(rng: random.Random, free: int, centred: float) -> int:
    """First token of a line with `free` spare tokens: centred in a share of pictures."""
    return free // 2 if rng.random() < centred else rng.randint(0, free)


def draw_scene(
    rng: random.Random,
    h: int,
    w: int,
    words: list[str] | None = None,
    regions: int = 1,
    said: float = 0.85,
    centred: float = 0.8,
) -> Scene:
    """A random scene of (h, w) tokens with `regions` words, or with the `words` given.

    Two strings of one picture always differ in length: plan tokens tell strings apart by it.
    """
    if words is None:
        words = []
        while len(words) < min(regions, h):
            word = random_word(rng, 2 * w)
            if all(len(word) != len(other) for other in words):
                words.append(word)
    paper = rng.choice(NAMES)
    rows = sorted(rng.sample(range(h), len(words)))
    lines, phrases = [], []
    for word, row in zip(words, rows):
        plate = rng.choice(NAMES) if rng.random() < 0.3 else paper
        ink = rng.choice(INKS[plate])
        count = (len(word) + 1) // 2
        left = _start(rng, w - count, centred)
        lines.append(Line(word, row, left, plate, ink))
        where = row_phrase(row, h, rng, said if len(words) == 1 else 1.0)
        ink_said = f" in {ink}" + rng.choice(("", " letters")) if rng.random() < 0.85 else ""
        label = "" if plate == paper else f" on a {plate} label"
        shown = word.lower() if rng.random() < 0.15 else word
        quote = rng.choice('""\'')
        phrases.append(f"{quote}{shown}{quote}{ink_said}{label}{where}")
    picture = with_shapes(rng, Picture((h, w), paper, tuple(lines)))
    shapes = [f"a {shape.ink} {shape.name}" for shape in picture.shapes]
    return Scene(_prompt(rng, paper, phrases, shapes), words, picture)


def draw_scenes(rng: random.Random, h: int, w: int, count: int, several: float, centred: float = 0.8) -> list[Scene]:
    """`count` random scenes of (h, w) tokens: one word each, or two to four words in a share `several` of them."""
    return [
        draw_scene(rng, h, w, regions=rng.randint(2, 4) if rng.random() < several else 1, centred=centred)
        for _ in range(count)
    ]


def held_scenes(count: int, h: int, w: int, regions: int = 1, seed: int = 99) -> list[Scene]:
    """Scenes with words that training never draws."""
    rng = random.Random(seed)
    words = [word for word in HELD_OUT if 2 <= len(word) <= min(MAX_WORD, 2 * w)]
    scenes = []
    while len(scenes) < count:
        chosen = rng.sample(words, min(regions, h))
        if len({len(word) for word in chosen}) == len(chosen):
            scenes.append(draw_scene(rng, h, w, chosen))
    return scenes


def with_shapes(rng: random.Random, picture: Picture) -> Picture:
    """With up to two shapes more, in free tokens."""
    for name in rng.sample(SHAPES, rng.choice((0, 0, 0, 1, 2))):
        free = np.argwhere(picture.codes == blank_code(picture.paper))
        if len(free):
            row, column = map(int, free[rng.randrange(len(free))])
            shape = Shape(name, row, column, rng.choice(INKS[picture.paper]))
            picture = replace(picture, shapes=(*picture.shapes, shape))
    return picture


def _prompt(rng: random.Random, paper: str, phrases: list[str], shapes: list[str]) -> str:
    thing = rng.choice(THINGS)
    opening = rng.choice((f"a {paper} {thing}", f"a {thing} on {paper}"))
    says = rng.choice((" that says ", " with the word ", " saying ", " with the text ")) if phrases else ""
    text = opening + says + " and ".join(phrases)
    return text + "".join(f", {shape}" for shape in shapes)


def parse_sizes(text: str) -> list[tuple[int, int, int]]:
    """`2x4:3,3x6` -> [(2, 4, 3), (3, 6, 1)]: rows, columns, weight."""
    sizes = []
    for part in text.split(","):
        size, _, weight = part.partition(":")
        h, w = map(int, size.split("x"))
        sizes.append((h, w, int(weight or 1)))
    return sizes


def random_cells(rng: np.random.Generator, b: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Grids without grammar, mostly lettering: the autoencoder learns patterns from them, not layouts."""
    codes = rng.integers(TEXT_BASE, TEXT_BASE + len(PAIRS) * len(SLOTS), (b, h, w))
    other = rng.integers(0, TEXT_BASE, (b, h, w))
    share_paper = rng.random((b, 1, 1)) < 0.5
    codes = np.where(share_paper, codes[:, :1, :1], codes)
    plain = rng.random((b, h, w)) < 0.2
    chars = rng.integers(0, len(ALPHABET) + 1, (b, h, 2 * w))
    chars[plain.repeat(2, 2)] = 0
    return np.where(plain, other, codes), chars
