"""Quoted texts of a prompt against diffusers, and text that cannot be encoded."""

import pytest
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.text import enclosed, quoted_texts, utf8

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
