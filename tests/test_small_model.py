"""The bundled checkpoint: it loads like any other, draws words that OCR reads, and the reference libraries agree."""

import json

import numpy as np
import pytest
import torch
from comfyui_glm_image.cli import demo
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.evaluation import generate, ocr, prompts
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.training import bundle

LIMIT = 25 << 20  # bytes of the whole folder
FLOOR = 0.5  # of words read, far below what docs/small_model.md measured: it tells a broken model, not a worse one
HEIGHT, WIDTH = demo.HEIGHT, demo.WIDTH


@pytest.fixture(scope="module")
def model():
    return GlmImage.from_pretrained(SMALL, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def reader():
    try:
        return ocr.available_engine("tesseract")
    except InputError as error:
        pytest.skip(str(error))


def pixels(model, seed, plan_seed=None):
    return np.asarray(model.generate(demo.PROMPT, HEIGHT, WIDTH, steps=4, seed=seed, plan_seed=plan_seed)[0])


def test_the_folder_is_small_and_whole():
    files = [path for path in SMALL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.name for path in files if path.parent == SMALL} == {"README.md", "model_index.json"}


def test_the_index_names_classes_that_exist_and_is_the_one_the_recipe_writes(tmp_path):
    """Serving engines look every class up in its library, and want the version of diffusers that wrote the folder."""
    bundle.write_frame(tmp_path)
    index = json.loads((SMALL / "model_index.json").read_text())
    assert json.loads((tmp_path / "model_index.json").read_text()) == index
    assert index.pop("_class_name") == "GlmImagePipeline" and index.pop("_diffusers_version")
    for library, name in index.values():
        assert hasattr(pytest.importorskip(library), name)


def test_words_it_never_saw_are_read_back(model, reader):
    cases = prompts.load_cases("small", limit=8)
    cases = [case for case in cases if case.group == "1"]
    images = generate.generate_batch(model, cases, seed=0, steps=20, cfg=1.5)
    found = [ocr.read_words(image, reader) for image in images]
    scores = [ocr.score_texts(list(case.texts), words) for case, words in zip(cases, found)]
    read = [[word.text for word in words] for words in found]
    assert sum(score.correct for score in scores) >= FLOOR * len(cases), list(zip([c.texts for c in cases], read))


def test_the_demo_says_its_word(model, reader):
    (image,) = model.generate(demo.PROMPT, HEIGHT, WIDTH, steps=demo.STEPS, seed=0)
    words = ocr.read_words(image, reader)
    assert ocr.score_texts(["HELLO"], words).correct == 1, [word.text for word in words]


def test_a_seed_repeats_exactly_and_another_seed_does_not(model):
    first = pixels(model, seed=1)
    assert (pixels(model, seed=1) == first).all()
    assert (pixels(model, seed=2) != first).any()
    assert (pixels(model, seed=2, plan_seed=1) != first).any()


def test_reference_libraries_load_the_folder_and_draw_the_same_picture(model):
    pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.GlmImagePipeline.from_pretrained(SMALL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.vision_language_encoder.generation_config.top_k = 1  # the pipeline always samples; this makes it greedy
    plan = model.plan(demo.PROMPT, HEIGHT, WIDTH, temperature=0)
    noise = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))
    ours = model.decode(model.denoise(plan, steps=4, noise=noise))
    ids = pipe.generate_prior_tokens(demo.PROMPT, HEIGHT, WIDTH)[0]
    assert torch.equal(ids, plan.prior_token_ids)
    given = {"prompt": demo.PROMPT, "height": HEIGHT, "width": WIDTH, "latents": noise, "prior_token_ids": ids}
    theirs = pipe(num_inference_steps=4, guidance_scale=1.5, output_type="np", **given).images
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-4)
