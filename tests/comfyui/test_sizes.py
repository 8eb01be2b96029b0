"""Sizes at the nodes: chosen by shape, taken from a reference, off the grid, and never trained."""

import pytest
from comfyui_glm_image.tests.comfyui.graphs import change, node, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import plan_of
from PIL import Image


@pytest.fixture(scope="module")
def small(server):
    """The name of the checkpoint that comes with the pack."""
    return next(name for name in server.options("GLMImageLoader", "model") if name.startswith("small"))


def size(**inputs) -> dict:
    return node("GLMImageSize", **{"shape": "1:1", "width": 1024, "height": 1024, "fit": True, **inputs})


def ran(server, name, graph):
    return server.run(graph)[name]


def planned(model, **changes):
    """Load, plan and save the plan."""
    graph = text_to_image(model, **changes)
    kept = {name: graph[name] for name in ("load", "plan")}
    return kept | {"plans": node("GLMImageSavePlan", plan=["plan", 0], filename_prefix="plans/size")}


def test_a_size_that_was_never_trained_is_said_at_the_node_and_made(server, random_model):
    outputs = server.run(planned(random_model, width=96, height=64))
    (text,) = outputs["plan"]["text"]
    assert text.startswith("96x64 px\nWarning: 96x64 px was never trained") and "1024 to 2048" in text
    assert plan_of(server, outputs).grid == (2, 3)


def test_a_size_of_the_small_checkpoint_is_only_named(server, small):
    assert server.run(planned(small, width=192, height=96))["plan"]["text"] == ["192x96 px"]


def test_a_plan_without_a_size_takes_the_references_shape(server, small):
    graph = planned(small, width=0, height=0)
    graph["picture"] = node("EmptyImage", width=400, height=200, batch_size=1, color=0x3366CC)
    graph = change(graph, plan_reference_1=["picture", 0])
    assert server.run(graph)["plan"]["text"] == ["128x64 px"]


@pytest.mark.parametrize(
    ("inputs", "made"),
    [
        ({"shape": "16:9"}, "1824x1024 px"),
        ({"shape": "2:3"}, "1024x1536 px"),
        ({"shape": "as the image", "image": ["picture", 0]}, "1376x768 px"),
        ({"shape": "width x height", "width": 1100, "height": 1030}, "1120x1056 px"),
    ],
)
def test_the_picker_gives_good_sizes(server, inputs, made):
    graph = {"size": size(**inputs)}
    graph["picture"] = node("EmptyImage", width=640, height=360, batch_size=1, color=0x3366CC)
    graph["latent"] = node("EmptyGLMImageLatent", width=["size", 0], height=["size", 1], batch_size=1)
    graph["keep"] = node("SaveLatent", samples=["latent", 0], filename_prefix="size")
    (text,) = ran(server, "size", graph)["text"]
    assert text.splitlines()[0] == made
    assert ("never trained" in text) == (made == "1376x768 px")


def test_the_pickers_sizes_are_the_connected_checkpoints(server, small):
    graph = planned(small, width=["size", 0], height=["size", 1])
    graph["size"] = size(shape="2:1", planner=["load", 0])
    assert server.run(graph)["plan"]["text"] == ["128x64 px"]


def test_an_image_off_the_grid_is_rounded_up_and_cut_back(server):
    graph = {"size": size(shape="width x height", width=90, height=50)}
    graph["picture"] = node("EmptyImage", width=["size", 0], height=["size", 1], batch_size=2, color=0x3366CC)
    graph["cut"] = node("GLMImageCutBack", images=["picture", 0], width=["size", 2], height=["size", 3])
    graph["save"] = node("SaveImage", images=["cut", 0], filename_prefix="cut")
    graph["whole"] = node("SaveImage", images=["picture", 0], filename_prefix="whole")
    outputs = server.run(graph)
    for name, wanted in (("save", (90, 50)), ("whole", (96, 64))):
        files = server.files(outputs, name)
        assert len(files) == 2 and {Image.open(file).size for file in files} == {wanted}


def kept(**inputs):
    graph = {"size": size(**inputs)}
    graph["latent"] = node("EmptyGLMImageLatent", width=["size", 0], height=["size", 1], batch_size=1)
    return graph | {"keep": node("SaveLatent", samples=["latent", 0], filename_prefix="size")}


def cut(width):
    graph = {"picture": node("EmptyImage", width=96, height=64, batch_size=1, color=0)}
    graph["cut"] = node("GLMImageCutBack", images=["picture", 0], width=width, height=64)
    return graph | {"save": node("SaveImage", images=["cut", 0], filename_prefix="cut")}


@pytest.mark.parametrize(
    ("graph", "message", "at"),
    [
        (kept(shape="width x height", width=1000, fit=False), "width 1000 is not a multiple of 32", "size"),
        (kept(shape="as the image"), "connect image, or choose another shape", "size"),
        (kept(shape="3:7"), "is not in the list", "size"),
        (cut(128), "the images are 96x64 px, smaller than 128x64", "cut"),
    ],
)
def test_what_means_no_size_is_refused_at_its_node(server, graph, message, at):
    with pytest.raises(PromptError, match=message) as error:
        server.run(graph)
    assert error.value.node == at
