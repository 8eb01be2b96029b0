"""The layout nodes in a real ComfyUI: what they output, what they refuse, and the editor driven in Chromium."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.layout.boxes import inside_boxes
from comfyui_glm_image.pipeline.layout.prompt import to_prompt
from comfyui_glm_image.pipeline.layout.regions import Layout, TextRegion
from comfyui_glm_image.pipeline.layout.sketch import render
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.server import PromptError
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).parent
PAGE = Layout((TextRegion("OPEN 24h", 0.1, 0.1, 0.8, 0.2, role="title"), TextRegion("营业中", 0.2, 0.6, 0.6, 0.2)))


def graph(layout="", **more):
    inputs = {"scene": "A shop", "width": 256, "height": 320, "language": "english", "positions": "words"}
    inputs |= {"max_overlap": 0.35, "layout": layout, **more}
    return {
        "1": {"class_type": "GLMImageTextLayout", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 3], "filename_prefix": "sketch"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }


def test_a_drawn_layout_gives_prompt_texts_and_sketch(server):
    outputs = server.run(graph(PAGE.to_json()))
    (path,) = server.files(outputs, "2")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(render(PAGE, 320, 256)))
    assert outputs["3"]["text"] == [to_prompt(PAGE, "A shop", sizes=False)]
    assert outputs["4"]["text"] == ["OPEN 24h\n营业中"]


@pytest.mark.parametrize(
    "source",
    [
        "title: OPEN 24h @ 10% 10% 80% 20%\ntext: 营业中 @ 20% 60% 60% 20%",
        json.dumps(
            [
                {"type": "text", "bbox": [100, 100, 300, 900], "text": "OPEN 24h", "desc": ""},
                {"type": "text", "bbox": [600, 200, 800, 800], "text": "营业中", "desc": ""},
            ]
        ),
        PAGE.to_json(),
    ],
    ids=["lines", "elements", "json"],
)
def test_a_source_replaces_the_drawing(server, source):
    outputs = server.run(graph(Layout((TextRegion("other", 0, 0, 1, 1),)).to_json(), source=source))
    (path,) = server.files(outputs, "2")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(render(PAGE, 320, 256)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the layout has no regions"),
        ({"layout": "{broken"}, "not valid JSON"),
        ({"layout": '{"format": "glm-image-layout", "version": 2, "regions": []}'}, "version 2, this release reads 1"),
        ({"source": "title: A @ noon"}, "line 1: 'noon' is not a place"),
        ({"layout": Layout((TextRegion("", 0.1, 0.1, 0.5, 0.5),)).to_json()}, "region 1 .*empty text"),
        ({"layout": Layout(PAGE.regions * 250).to_json()}, "500 regions"),
        ({"layout": Layout((TextRegion("x" * 1_000_000, 0, 0, 1, 1),)).to_json()}, "at most 1000 fit one region"),
        ({"layout": PAGE.to_json(), "width": 1000}, "width 1000 is not a multiple of 32"),
    ],
)
def test_a_bad_layout_is_one_sentence_at_its_node_and_the_queue_goes_on(server, fields, message):
    with pytest.raises(PromptError, match=message) as error:
        server.run(graph(**fields))
    assert error.value.node == "1"
    server.run(graph(PAGE.to_json()))


def test_a_sketch_is_read_back_and_ranked(server):
    pytest.importorskip("pytesseract")
    if not shutil.which("tesseract"):
        pytest.skip("the tesseract program is not installed")
    page = Layout((TextRegion("OPEN", 0.1, 0.1, 0.8, 0.25), TextRegion("BREAD", 0.1, 0.6, 0.8, 0.25)))
    nodes = graph(page.to_json()) | {
        "5": {"class_type": "EmptyImage", "inputs": {"width": 256, "height": 320, "batch_size": 1, "color": 0x808080}},
        "6": {"class_type": "ImageBatch", "inputs": {"image1": ["5", 0], "image2": ["1", 3]}},
        "7": {"class_type": "GLMImageBestOfN", "inputs": {"images": ["6", 0], "keep": 1, "layout": ["1", 2]}},
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 2]}},
        "9": {"class_type": "GLMImageReadText", "inputs": {"images": ["7", 0], "layout": ["1", 2]}},
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["9", 2]}},
        "11": {"class_type": "PreviewAny", "inputs": {"source": ["9", 4]}},
    }
    try:
        outputs = server.run(nodes)
    except PromptError as error:
        if "no OCR engine" in error.text:
            pytest.skip("pytesseract is not installed beside ComfyUI")
        raise
    assert outputs["8"]["text"][0].startswith("image 1: 2 of 2 words, NED 1.000, 2 in their box\nimage 0: 0 of 2")
    assert outputs["10"]["text"] == ["1.0"] == outputs["11"]["text"]


def test_ranking_without_anything_to_read_is_refused(server):
    nodes = graph(PAGE.to_json())
    nodes["7"] = {"class_type": "GLMImageBestOfN", "inputs": {"images": ["1", 3], "keep": 1, "texts": " "}}
    nodes["8"] = {"class_type": "PreviewAny", "inputs": {"source": ["7", 2]}}
    with pytest.raises(PromptError, match="nothing to rank by"):
        server.run(nodes)


SMALL_PAGE = Layout((TextRegion("OPEN", 0.12, 0.1, 0.6, 0.3), TextRegion("24h", 0.51, 0.6, 0.49, 0.4)))
GRID = (4, 6)


@pytest.fixture(scope="module")
def model(server, references):
    """The name of a checkpoint of random weights that the server can load."""
    folder = server.base / "models" / "glm_image"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "random_layout").symlink_to(references("plain")[0], target_is_directory=True)
    offered = server.get("/object_info/GLMImageLoader")["GLMImageLoader"]["input"]["required"]["model"]
    names = offered[1]["options"] if len(offered) > 1 and "options" in offered[1] else offered[0]
    return next(name for name in names if name.startswith("random_layout"))


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def planning(model, mode="force", **replan):
    """Load, lay out, guide, plan twice and save the plans; `replan` plans the first again."""
    size = {"width": 32 * GRID[1], "height": 32 * GRID[0]}
    plan = {"prompt": ["page", 0], **size, "seed": 3, "temperature": 0.9, "top_p": 0.75, "count": 2}
    nodes = graph(SMALL_PAGE.to_json(), **size)
    nodes = {"page": nodes["1"]} | {
        "load": node("GLMImageLoader", model=model, decoder_dtype="auto", planner_dtype="auto", device="auto"),
        "guide": node(
            "GLMImageLayoutGuidance",
            planner=["load", 0],
            layout=["page", 2],
            mode=mode,
            strength=6.0,
            grids="both",
            falloff=0.0,
        ),
        "guided": node("GLMImagePlan", planner=["guide", 0], **plan),
        "plain": node("GLMImagePlan", planner=["load", 0], **plan),
        "save_guided": node("GLMImageSavePlan", plan=["guided", 0], filename_prefix=f"plans/{mode}"),
        "save_plain": node("GLMImageSavePlan", plan=["plain", 0], filename_prefix="plans/plain"),
    }
    if replan:
        inputs = {"layout": ["page", 2], "seed": 90, "temperature": 0.9, "top_p": 0.75, **replan}
        nodes["again"] = node("GLMImageReplanRegion", planner=["load", 0], plan=["plain", 0], **inputs)
        nodes["save_again"] = node("GLMImageSavePlan", plan=["again", 0], filename_prefix="plans/again")
    return nodes


def plans(server, nodes):
    outputs = server.run(nodes)
    return {name: Plan.load(server.files(outputs, name, "plans")[0]) for name in nodes if name.startswith("save_")}


def inside(regions=SMALL_PAGE.regions, grid=GRID):
    return inside_boxes(Layout(regions), grid).any(0).flatten()


def test_forced_guidance_gives_every_plan_the_same_tokens_inside_the_boxes_only(server, model):
    ids = plans(server, planning(model))["save_guided"].prior_token_ids_d32
    assert int(inside().sum()) == 2 * 3 + 2 * 3
    assert torch.equal(ids[0, inside()], ids[1, inside()])
    assert not torch.equal(ids[0, ~inside()], ids[1, ~inside()])


def test_guidance_that_is_off_gives_the_plan_without_it(server, model):
    saved = plans(server, planning(model, "off"))
    assert torch.equal(saved["save_guided"].prior_token_ids_d32, saved["save_plain"].prior_token_ids_d32)
    assert torch.equal(saved["save_guided"].preview_token_ids, saved["save_plain"].preview_token_ids)


def test_replanning_changes_tokens_of_the_chosen_region_only(server, model):
    saved = plans(server, planning(model, "off", regions="2"))
    before, after = saved["save_plain"].prior_token_ids_d32, saved["save_again"].prior_token_ids_d32
    chosen = inside(SMALL_PAGE.regions[1:])
    assert torch.equal(before[:, ~chosen], after[:, ~chosen])
    assert not torch.equal(before[:, chosen], after[:, chosen])


def test_a_region_that_the_layout_lacks_is_named(server, model):
    with pytest.raises(PromptError, match="region '3' is not in the layout; it has 1 to 2"):
        server.run(planning(model, "off", regions="3"))


def decoding(model, attention, texts=None, level=1.0, mode="list"):
    """The plan through the guided decoder and a KSampler to a latent."""
    nodes = planning(model, "off")
    nodes |= {
        "text": node(
            "GLMImageConditioning",
            glyph_encoder=["load", 2],
            plan=["plain", 0],
            glyph_mode=mode,
            glyph_texts=texts or ["page", 1],
            negative_texts="",
        ),
        "guide2": node(
            "GLMImageLayoutDecoderGuidance",
            model=["load", 1],
            positive=["text", 0],
            layout=["page", 2],
            attention=attention,
            text_elsewhere=True,
            sketch_level=level,
            **({"vae": ["load", 3], "sketch": ["page", 3]} if level < 1 else {}),
        ),
        "sample": node(
            "KSampler",
            model=["guide2", 0],
            positive=["guide2", 1],
            negative=["text", 1],
            latent_image=["guide2", 2],
            seed=5,
            steps=4,
            cfg=1.5,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "latent": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/layout"),
    }
    return nodes


def latent(server, nodes):
    (path,) = server.files(server.run(nodes), "latent", "latents")
    return load_file(path)["latent_tensor"]


def test_attention_for_no_step_is_the_picture_without_it_and_for_some_is_not(server, model):
    nodes = decoding(model, 0.0)
    nodes["sample"]["inputs"] |= {"model": ["load", 1], "positive": ["text", 0]}
    plain = latent(server, nodes)
    off, early, always = (latent(server, decoding(model, share)) for share in (0.0, 0.5, 1.0))
    assert torch.equal(plain, off)
    assert torch.isfinite(early).all() and torch.isfinite(always).all()
    assert not torch.equal(off, early) and not torch.equal(early, always)


def test_texts_that_do_not_fit_the_layout_are_one_sentence_at_the_node(server, model):
    with pytest.raises(PromptError, match="the conditioning has 15 glyph tokens, the layout's texts make 11") as error:
        server.run(decoding(model, 0.5, texts="something else"))
    assert error.value.node == "guide2"


def test_following_the_sketch_changes_the_boxes(server, model):
    free, held = (latent(server, decoding(model, 0.0, level=level)) for level in (0.999, 0.2))
    cells = inside_boxes(SMALL_PAGE, tuple(free.shape[-2:])).any(0)
    moved = (free - held).abs().mean(dim=(0, 1))
    assert moved[cells].mean() > 2 * moved[~cells].mean()


def browser_missing():
    probe = "require(process.env.PLAYWRIGHT_CORE ?? 'playwright-core')"
    if not shutil.which("node") or subprocess.run(["node", "-e", probe], capture_output=True, cwd=HERE).returncode:
        return "playwright-core is not installed (npm install playwright-core, or PLAYWRIGHT_CORE)"
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    return None if Path(chromium).is_file() else f"{chromium} does not exist"


@pytest.fixture(scope="module", params=["classic", "vue"])
def driven(request, server, tmp_path_factory):
    """What layout_browser.mjs saw in the old and in the new node renderer; pictures go to PICTURES if that is set."""
    if reason := browser_missing():
        pytest.skip(reason)
    pictures = os.environ.get("PICTURES") or str(tmp_path_factory.mktemp("pictures"))
    command = ["node", str(HERE / "layout_browser.mjs"), server.url, request.param, pictures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_two_drawn_boxes_come_back_from_the_saved_picture(driven):
    assert driven["status"] == "success"
    drawn = json.loads(driven["drawn"])["regions"]
    assert [region["text"] for region in drawn] == ["OPEN 24h", "</script> 营业中"]
    assert [drawn[0][key] for key in ("x", "y", "width", "height")] == pytest.approx([0.1, 0.1, 0.8, 0.2], abs=0.01)
    assert driven["reloaded"] == driven["drawn"]


@pytest.mark.parametrize("mode", ["classic", "vue"])
def test_comfyuis_own_undo_takes_one_step_at_a_time(server, mode):
    if reason := browser_missing():
        pytest.skip(reason)
    command = ["node", str(HERE / "undo_browser.mjs"), server.url, mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    steps = [[], [""], ["OPEN"], ["OPEN", ""], ["OPEN", "LATE"]]  # a box drawn, its text typed, and the same again
    assert seen["errors"] == [] and seen["drawn"] == steps[-1]
    assert seen["undone"] == steps[-2::-1] and seen["redone"] == steps[1:]


def test_a_connected_picture_lies_under_the_boxes(driven):
    assert "/view?filename=" in driven["background"]


def test_undo_redo_and_delete_stay_inside_the_editor(driven):
    assert driven["undone"] == ["OPEN 24h"]
    assert driven["redone"]
    assert driven["afterDelete"] == {"texts": ["</script> 营业中"], "nodes": 2}
    assert driven["nodeStayed"]


def test_forty_boxes_follow_the_pointer_within_a_frame(driven, record_property):
    record_property("frame_ms", driven["frames"])
    print("40 boxes:", driven["frames"])
    assert driven["frames"]["count"] >= 50
    assert driven["frames"]["median"] < 16


def test_the_editor_causes_no_error_in_the_page(driven):
    assert driven["errors"] == []
