"""The glyph encoder against transformers' T5 encoder, driven as diffusers' pipeline drives it."""

import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.loading.weights import load_module
from comfyui_glm_image.pipeline.models.config import GlyphConfig
from comfyui_glm_image.pipeline.models.glyph_encoder import GlyphEncoder, glyph_batch
from torch.testing import assert_close

TEXTS = [[], ["ONE"], ["one", "two words"], ["日本", "é", "🐈"], ["x" * 5000]]

NAMED = [
    "a </s> b", "abc</s>", "abc </s> ", "</s>", "<pad>", "a <pad><unk> b", "x <extra_id_0> y", "<extra_id_124>",
    "<extra_id_125>", "<extra_id_007>", "a\t</s>\nb", "a\u3000<unk> b", " </s> <pad> ", "日本</s>語",
    "<extra_id_0> </s> z", "a</s ></s>", "<</s>>", "</s></s>", "x\u200b</s>y", "x\x1f<unk>y", "<PAD>",
    "ab" * 1023 + "</s>z",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(reference):
    folder, pipe = reference
    config = GlyphConfig.from_json(folder / "text_encoder" / "config.json")
    return load_module(GlyphEncoder, config, folder / "text_encoder", "cpu", torch.float32), pipe


def embedded_by_diffusers(pipe, texts, monkeypatch):
    monkeypatch.setattr(pipe, "get_glyph_texts", lambda _: [texts])
    with torch.no_grad():
        return pipe._get_glyph_embeds("x", device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("texts", TEXTS[:4])
def test_embeddings_equal_the_reference(pair, texts, monkeypatch):
    ours, pipe = pair
    with torch.no_grad():
        assert_close(ours.embed(texts), embedded_by_diffusers(pipe, texts, monkeypatch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("texts", [*TEXTS, NAMED])
def test_ids_and_mask_equal_what_diffusers_gives_the_encoder(pair, texts, monkeypatch):
    ours, pipe = pair
    seen = {}

    def record(_module, arguments, named):
        seen.update(ids=arguments[0], mask=named["attention_mask"].bool())

    hook = pipe.text_encoder.register_forward_pre_hook(record, with_kwargs=True)
    embedded_by_diffusers(pipe, texts, monkeypatch)
    hook.remove()
    ids, mask = glyph_batch(texts, ours.config, named=True)
    assert_close(ids, seen["ids"])
    assert_close(mask, seen["mask"])


def test_names_of_tokens_are_drawn_as_letters_unless_they_are_asked_for(pair):
    ours, _ = pair
    ids, _ = glyph_batch(["a </s> b"], ours.config)
    assert ids.tolist() == [[byte + 3 for byte in b"a </s> b"] + [1]]


def test_prompts_of_different_length_are_padded_on_the_left_and_masked(pair):
    ours, _ = pair
    embeds, mask = ours.embed_batch([["long text"], ["ab"]])
    assert mask.tolist() == [[True] * 10, [False] * 7 + [True] * 3]
    assert_close(embeds[1:, 7:], ours.embed(["ab"]))
    assert ours.embed_batch([["ab"], ["cd"]])[1] is None


def test_half_a_surrogate_pair_is_refused(pair):
    with pytest.raises(InputError, match="character 1 .* unpaired surrogate"):
        pair[0].embed(["a\ud83d"])
