"""Prompt ids and positions against transformers' processor."""

import json
import shutil

import pytest
import torch
from comfyui_glm_image.pipeline.errors import CheckpointError, InputError
from comfyui_glm_image.pipeline.geometry import preview_grid
from comfyui_glm_image.pipeline.models.config import ProcessorConfig, VisionLanguageConfig
from comfyui_glm_image.pipeline.planning import prompt
from comfyui_glm_image.pipeline.planning.prompt import PromptEncoder, collate
from comfyui_glm_image.pipeline.planning.references import prepare_reference
from PIL import Image
from torch.testing import assert_close

PROMPTS = [
    "a poster",
    "",
    "  two  spaces\nand a line ",
    "猫と『本』、emoji 🐈‍⬛ and ümlauts",
    'say "HELLO", 7x5',
    "{{ 1 + 1 }} {% raw %}",
]


@pytest.fixture(scope="module")
def plain(references):
    folder, pipeline = references("plain")
    config = VisionLanguageConfig.from_json(folder / "vision_language_encoder" / "config.json")
    return folder, pipeline, PromptEncoder(folder / "processor", config)


def processor_inputs(pipeline, prompts, grid, images=()):
    content = [{"type": "image", "image": image} for image in images]
    messages = [[{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}] for prompt in prompts]
    settings = {"padding": True, "return_tensors": "pt", "target_h": grid[0] * 32, "target_w": grid[1] * 32}
    return pipeline.processor.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs=settings)


@pytest.mark.parametrize("grid", [(5, 7), (32, 32), (11, 3)])
def test_ids_mask_and_positions_equal_the_processors(plain, grid):
    _, pipeline, encoder = plain
    preview = preview_grid(*grid)
    batch = collate([encoder.encode(prompt, grid, preview) for prompt in PROMPTS], grid, preview, encoder.config)
    wanted = processor_inputs(pipeline, PROMPTS, grid)
    assert_close(batch.ids, wanted["input_ids"])
    assert_close(batch.mask, wanted["attention_mask"].bool())
    assert_positions_equal(pipeline, batch, wanted)


@pytest.mark.parametrize("sizes", [[(128, 160)], [(160, 128), (256, 64), (96, 96)]])
def test_ids_and_positions_with_references_equal_the_processors(plain, sizes):
    folder, pipeline, encoder = plain
    images = [Image.new("RGB", size, "teal") for size in sizes]
    settings = ProcessorConfig.from_folder(folder / "processor")
    grids = [prepare_reference(image, settings).grid for image in images]
    batch = collate([encoder.encode("mix them", (6, 4), None, grids)], (6, 4), None, encoder.config)
    wanted = processor_inputs(pipeline, ["mix them"], (6, 4), images)
    assert_close(batch.ids, wanted["input_ids"])
    assert_positions_equal(pipeline, batch, wanted)


def assert_positions_equal(pipeline, batch, wanted):
    model = pipeline.vision_language_encoder.model
    positions, _ = model.get_rope_index(
        wanted["input_ids"], wanted["image_grid_thw"], wanted["images_per_sample"], wanted["attention_mask"]
    )
    assert_close(batch.positions[:, batch.mask], positions[:, batch.mask])
    decode = model._cached_decode_position_ids.permute(1, 0, 2)
    assert_close(batch.decode_positions, decode[:, :, :-1])  # theirs ends with the end token, which we never draw


def test_reference_tokens_take_the_image_tokens_places(plain):
    _, _, encoder = plain
    encoded = encoder.encode("edit", (2, 2), None, [(1, 2), (2, 2)])
    tokens = [torch.tensor([3, 1]), torch.tensor([4, 1, 5, 9])]
    batch = collate([encoded], (2, 2), None, encoder.config, tokens)
    places = encoded.ids == encoder.config.image_token_id
    assert batch.ids[0, places].tolist() == [3, 1, 4, 1, 5, 9]


def test_a_prompt_of_10000_characters_is_encoded(plain):
    _, _, encoder = plain
    encoded = encoder.encode("long " * 1000, (32, 32), (16, 16))
    assert collate([encoded], (32, 32), (16, 16), encoder.config).ids.shape[1] > 5000


def test_a_prompt_beyond_the_planners_positions_is_refused_with_its_length_before_tokens_are_placed(plain, monkeypatch):
    _, _, encoder = plain
    monkeypatch.setattr(prompt, "_place", lambda *_: pytest.fail("placed"))
    with pytest.raises(InputError, match=r"the prompt has 100\d\d tokens and the image 1280, the planner takes 8192"):
        encoder.encode("x" * 10_000, (32, 32), (16, 16))


def test_reference_images_count_with_all_their_tokens(plain):
    _, _, encoder = plain
    with pytest.raises(InputError, match=r"the prompt has 80\d\d tokens and the image 256, the planner takes 8192"):
        encoder.encode("mix", (16, 16), None, [(40, 100), (40, 100)])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "must be a string, got NoneType"),
        (["a"], "must be a string, got list"),
        ("draw <|image|>", r"contains <\|image\|>, a control token"),
        ("size <sop>1 1<eop>", "contains <sop>"),
        ("half \ud83d", "character 5 .* is an unpaired surrogate"),
    ],
)
def test_bad_prompts_are_refused(plain, prompt, message):
    with pytest.raises(InputError, match=message):
        plain[2].encode(prompt, (2, 2))


@pytest.fixture
def processor_copy(plain, tmp_path):
    return shutil.copytree(plain[0] / "processor", tmp_path / "processor"), plain[2].config


def test_special_tokens_may_be_objects_or_in_a_dictionary(processor_copy, plain):
    folder, config = processor_copy
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    image = settings.pop("image_token")
    settings["extra_special_tokens"] = {"image_token": image}
    settings["bos_token"] = {"content": settings["bos_token"], "special": True}
    path.write_text(json.dumps(settings))
    assert PromptEncoder(folder, config).control == plain[2].control


def test_a_template_inside_the_tokenizers_configuration_is_read(processor_copy, plain):
    folder, config = processor_copy
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="chat_template.jinja is missing"):
        PromptEncoder(folder, config)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": source}))
    assert PromptEncoder(folder, config).render("x", 1) == plain[2].render("x", 1)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "is not a template"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
        ("{{ raise_exception('no images') }}", "cannot be rendered: no images"),
        ("plain", "renders 0 image tokens for 1 reference images"),
    ],
)
def test_a_bad_or_hostile_template_is_refused_by_file(processor_copy, template, message):
    folder, config = processor_copy
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=f"chat_template.jinja.*{message}"):
        PromptEncoder(folder, config).encode("x", (2, 2), None, [(1, 1)])


def test_a_missing_control_token_is_named_with_its_file(processor_copy):
    folder, config = processor_copy
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["grid_bos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="tokenizer_config.json: key 'grid_bos_token' is missing"):
        PromptEncoder(folder, config)


def test_a_tokenizer_that_is_none_is_refused(processor_copy):
    folder, config = processor_copy
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.json: key 'model' is missing"):
        PromptEncoder(folder, config)
