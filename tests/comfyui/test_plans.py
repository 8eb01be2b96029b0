"""Plans on a real server: what is listed, what a preview shows, and the size that a latent reports."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.test_workflows import SMALL
from PIL import Image
from safetensors.torch import save_file

COLOURS = {"red": (200, 40, 40), "blue": (40, 80, 200), "green": (30, 140, 70), "yellow": (245, 210, 50)}


def test_only_plans_are_listed(server):
    folder = server.base / "output" / "plans"
    folder.mkdir(exist_ok=True)
    Plan(torch.zeros(1, 4, dtype=torch.int64), (2, 2), 640, ["a sign"], 0).save(folder / "real.safetensors")
    save_file({"lora": torch.zeros(2)}, folder / "lora.safetensors", metadata={"format": "pt"})
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    (folder / "short.safetensors").write_bytes(b"")
    listed = [name for name in server.options("GLMImageLoadPlan", "plan") if name.startswith("output/plans/")]
    assert "output/plans/real.safetensors" in listed
    assert not {f"output/plans/{name}.safetensors" for name in ("lora", "broken", "short")} & set(listed)


def previewed(server, prompts: list[str]) -> list[Image.Image]:
    """What the page shows of a plan for each prompt."""
    shared = {"width": 192, "height": 96, "seed": 1, "temperature": 0.9, "top_p": 1.0, "count": 1}
    loader = {"model": "small (bundled)", "decoder_dtype": "auto", "planner_dtype": "auto", "device": "auto"}
    graph = {"loader": {"class_type": "GLMImageLoader", "inputs": loader}}
    for i, prompt in enumerate(prompts):
        inputs = {"planner": ["loader", 0], "prompt": prompt, **shared}
        graph[f"plan{i}"] = {"class_type": "GLMImagePlan", "inputs": inputs}
        inputs = {"planner": ["loader", 0], "plan": [f"plan{i}", 0]}
        graph[f"show{i}"] = {"class_type": "GLMImagePlanPreview", "inputs": inputs}
    outputs = server.run(graph)
    return [Image.open(server.files(outputs, f"show{i}")[0]).convert("RGB") for i in range(len(prompts))]


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
def test_a_preview_has_the_colours_of_the_picture_to_come(server):
    """Each plan of a plain coloured sign looks more like its colour than like any other."""
    pictures = previewed(server, [f'a {colour} sign that says "OPEN" in white' for colour in COLOURS])
    known = np.array(list(COLOURS.values()))
    for name, picture in zip(COLOURS, pictures):
        shown = np.median(np.asarray(picture).reshape(-1, 3), axis=0)
        distances = np.abs(known - shown).sum(1)
        assert list(COLOURS)[distances.argmin()] == name, shown
        assert distances.min() < 150, shown


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
def test_several_plans_are_shown_as_one_sheet_and_given_one_by_one(server):
    inputs = {"model": "small (bundled)", "decoder_dtype": "auto", "planner_dtype": "auto", "device": "auto"}
    plan = {"planner": ["1", 0], "prompt": 'a red sign that says "OPEN"', "width": 192, "height": 96, "seed": 1}
    plan |= {"temperature": 0.9, "top_p": 1.0, "count": 4}
    outputs = server.run(
        {
            "1": {"class_type": "GLMImageLoader", "inputs": inputs},
            "2": {"class_type": "GLMImagePlan", "inputs": plan},
            "3": {"class_type": "GLMImagePlanPreview", "inputs": {"planner": ["1", 0], "plan": ["2", 0]}},
            "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "preview"}},
        }
    )
    (sheet,) = server.files(outputs, "3")
    width, height = Image.open(sheet).size
    assert width < 2.5 * height  # 4 grids of 2:1 stand in 2 columns of 2
    assert len(server.files(outputs, "4")) == 4


@pytest.mark.skipif(not SMALL.is_file(), reason="checkpoints/small is not there")
def test_an_empty_latent_reports_its_plans_size(server):
    Plan(torch.zeros(3, 18, dtype=torch.int64), (3, 6), 640, ["a", "b", "c"], 0).save(
        server.base / "output" / "three.safetensors"
    )
    outputs = server.run(
        {
            "1": {"class_type": "GLMImageLoadPlan", "inputs": {"plan": "output/three.safetensors"}},
            "2": {
                "class_type": "EmptyGLMImageLatent",
                "inputs": {"plan": ["1", 0], "width": 1024, "height": 1024, "batch_size": 2},
            },
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        }
    )
    assert outputs["2"]["text"] == ["6 images of 192x96 px"]
