"""Quoted texts of a prompt against diffusers, and text that cannot be encoded."""

import random

import pytest
from comfyui_glm_image.pipeline import text
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.text import (
    MAX_PROMPT,
    QUOTES,
    _closings,
    check_prompt,
    check_texts,
    enclosed,
    quoted_texts,
    shown,
    utf8,
)

# prompt -> its texts in prompt order, apostrophes read; the reference's answer comes from diffusers itself
QUOTED = {
    "no text at all": [],
    "a sign 'STOP' here": ["STOP"],
    "Don't stop, it's late": [],
    "it's a sign 'don't stop' and \"go\"": ["don't stop", "go"],
    "\"first\" then 'second' then “third”": ["first", "second", "third"],
    "「一」と『二』と«trois»と‘vier’": ["一", "二", "trois", "vier"],
    "‘don’t’ and don’t": ["don’t"],
    "海报写着'你好'和“再见”。": ["你好", "再见"],
    "the '90s called": [],
    'a 5" x 7" card saying "HI"': ["HI"],
    "unpaired ' here and \" there and “ this": [],
    "unpaired “ but 'still' read": ["still"],
    "empty '' and \"\" and “ ”": [],
    "nested 「外『内』」 text": ["外『内』"],
    "„Guten Tag“ and “outer “inner” outer”": ["Guten Tag", "outer “inner” outer"],
    'two lines "one\ntwo"': ["one\ntwo"],
    "emoji '🐈‍⬛ cat' 'é'": ["🐈‍⬛ cat", "é"],
    "dogs' toys and cats' toys": [],
}


@pytest.mark.parametrize("prompt", QUOTED)
def test_reference_mode_equals_diffusers(references, prompt):
    assert quoted_texts(prompt) == references("plain")[1].get_glyph_texts(prompt)[0]


@pytest.mark.parametrize(("prompt", "texts"), QUOTED.items())
def test_prompt_order_reads_all_quotes_and_apostrophes(prompt, texts):
    assert quoted_texts(prompt, mode="prompt_order") == texts


def test_an_unknown_glyph_mode_is_refused():
    with pytest.raises(InputError, match="'reference' or 'prompt_order'"):
        quoted_texts("x", mode="best")


def test_an_unpaired_surrogate_is_refused_with_its_place():
    assert utf8("aé猫") == "aé猫".encode()
    with pytest.raises(InputError, match="character 1 .* is an unpaired surrogate"):
        utf8("a\ud83d")


def test_a_text_is_quoted_by_the_first_pair_that_it_does_not_hold():
    assert enclosed("say “hi”", ("“”", '""', "「」")) == '"say “hi”"'
    assert enclosed('a"b', ('""',)) is None


def closing_by_definition(prompt, start):
    """The rule for one quote, which takes time in proportion to the rest of the prompt."""
    opener, closers, depth = prompt[start], QUOTES[prompt[start]], 1
    for i in range(start + 1, len(prompt)):
        if prompt[i] in closers and not (prompt[i] in "'’" and prompt[i + 1 : i + 2].isalpha()):
            depth -= 1
        elif prompt[i] == opener and opener not in closers:
            depth += 1
        if depth == 0:
            return i
    return None


def test_every_quote_is_closed_as_by_definition():
    draw = random.Random(0)
    for _ in range(2000):
        prompt = "".join(draw.choices("'\"‘’“”„「」『』«»a ", k=draw.randrange(30)))
        wanted = {i: closing_by_definition(prompt, i) for i, mark in enumerate(prompt) if mark in QUOTES}
        assert _closings(prompt) == {i: end for i, end in wanted.items() if end is not None}


@pytest.mark.parametrize("mark", ["'", '"', "“", "「", "„", "‘", "'a"])
def test_open_quotes_cost_no_more_than_closed_ones(monkeypatch, mark):
    looks = []
    monkeypatch.setattr(text, "_is_apostrophe", lambda prompt, i: looks.append(i) or prompt[i + 1 : i + 2] == "a")
    text.quoted_texts(mark * 5000, "prompt_order")
    assert len(looks) <= 2 * 5000  # a mark belongs to two styles at most


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "must be a string, got NoneType"),
        (" \n ", "the prompt is empty"),
        ("a" * (MAX_PROMPT + 1), "65,537 characters; at most 65,536"),
        ("a\ud800", "unpaired surrogate"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        check_prompt(prompt)


def test_more_text_than_an_image_shows_is_refused():
    check_texts(["a" * 2048] * 4)
    check_texts(["a" * 1_000_000])  # as the reference does, its start is drawn
    for texts, message in ((["a" * 2048] * 5, "10,240 bytes; at most 8,192"), (["a"] * 257, "257 texts")):
        with pytest.raises(InputError, match=message):
            check_texts(texts)


def test_foreign_values_are_shown_short():
    assert shown("a") == "'a'" and len(shown("a" * 10**7)) < 50
    assert shown(10**5000) == "a int" and shown([1] * 1000).endswith("...")
