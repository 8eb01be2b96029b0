"""Synthetic pictures of words, signs and shapes, drawn on the planner's 32 px grid, with prompts and plans.

A picture is two integer grids: `codes` (h, w), one plan token for every 32x32 px, and `chars` (h, 2w), one
character for every 16x32 px half token (0 is none). A plan token says which background and ink a token has and, where
there is lettering, how many characters the word has and which two of them stand here; it never says which
characters they are. That is left to the glyphs. Nothing is read from disk but one bundled font.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = Path(__file__).parent / "fonts" / "DejaVuSansMono-Bold-ascii.ttf"
FONT_SIZE = 26  # px; the advance is 15.7 px, so that a character fills one 16x32 px half token
BASELINE = 25  # px below the token's upper edge
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
class Picture:
    """What stands where on (h, w) tokens."""

    size: tuple[int, int]
    paper: str
    lines: tuple[Line, ...] = ()
    shapes: tuple[Shape, ...] = ()

    @property
    def codes(self) -> np.ndarray:
        """(h, w) int64 plan tokens."""
        codes = np.full(self.size, blank_code(self.paper), np.int64)
        for line in self.lines:
            for j in range(line.tokens):
                codes[line.row, line.left + j] = text_code(line.plate, line.ink, len(line.word), j)
        for shape in self.shapes:
            codes[shape.row, shape.column] = shape_code(self.paper, shape.ink, shape.name)
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


@cache
def glyph_masks() -> np.ndarray:
    """(1 + characters, 32, 16) coverage of every character of the alphabet; the first is empty."""
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    masks = [np.zeros((TOKEN, CELL), np.uint8)]
    for character in ALPHABET:
        image = Image.new("L", (CELL, TOKEN))
        ImageDraw.Draw(image).text((CELL / 2, BASELINE), character, fill=255, font=font, anchor="ms")
        masks.append(np.asarray(image))
    return np.stack(masks).astype(np.float32) / 255


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in the unit square."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if shape == "square":
        return [(0.15, 0.15), (0.85, 0.15), (0.85, 0.85), (0.15, 0.85)]
    if shape == "triangle":
        return [(0.5, 0.1), (0.92, 0.85), (0.08, 0.85)]
    if shape == "star":
        points = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2, 0.18, 0.44)
        return list(zip(0.5 + radius * np.cos(points), 0.53 + radius * np.sin(points)))
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return list(zip(0.5 + x / 42, 0.46 - y / 42))
    return list(zip(0.5 + 0.38 * np.cos(turn), 0.5 + 0.38 * np.sin(turn)))


@cache
def shape_masks() -> np.ndarray:
    """(1 + shapes, 32, 32) coverage of every shape; the first is empty."""
    masks = [np.zeros((TOKEN, TOKEN), np.float32)]
    for shape in SHAPES:
        image = Image.new("L", (TOKEN * 8, TOKEN * 8))
        ImageDraw.Draw(image).polygon([(x * TOKEN * 8, y * TOKEN * 8) for x, y in _outline(shape)], fill=255)
        masks.append(np.asarray(image.resize((TOKEN, TOKEN), Image.BOX), np.float32) / 255)
    return np.stack(masks)


@cache
def code_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every code: paper (640, 3), ink (640, 3), shape (640,); unused codes are white."""
    paper = np.full((CODEBOOK, 3), COLOURS["white"], np.float32)
    ink = paper.copy()
    shape = np.zeros(CODEBOOK, np.int64)
    for name in NAMES:
        paper[blank_code(name)] = ink[blank_code(name)] = COLOURS[name]
    for under, over in PAIRS:
        codes = [shape_code(under, over, s) for s in SHAPES] + [text_code(under, over, n, j) for n, j in SLOTS]
        paper[codes], ink[codes] = COLOURS[under], COLOURS[over]
        shape[codes[: len(SHAPES)]] = np.arange(len(SHAPES)) + 1
    return paper, ink, shape


def render(codes: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """(B, h, w) codes and (B, h, 2w) characters -> (B, 32h, 32w, 3) uint8 pictures."""
    b, h, w = codes.shape
    paper, ink, shape = code_table()
    letters = glyph_masks()[chars]  # (B, h, 2w, 32, 16)
    letters = letters.reshape(b, h, w, 2, TOKEN, CELL).swapaxes(3, 4).reshape(b, h, w, TOKEN, TOKEN)
    mask = np.maximum(letters, shape_masks()[shape[codes]])[..., None]
    under, over = paper[codes][:, :, :, None, None], ink[codes][:, :, :, None, None]
    pixels = under + mask * (over - under)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * TOKEN, w * TOKEN, 3)
    return np.rint(pixels).astype(np.uint8)


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


def write_sheet(pictures: np.ndarray, path: Path, columns: int = 4) -> None:
    """(B, H, W, 3) uint8 -> one PNG."""
    b, height, width, _ = pictures.shape
    rows = -(-b // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = picture
    Image.fromarray(sheet).save(path)
