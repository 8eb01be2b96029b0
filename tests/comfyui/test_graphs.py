"""Graphs that cannot work, refused in one sentence at their node, and graphs with nodes of other models."""

import pytest
import torch
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.graphs import change, decoder, node, sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of, plan_of
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def other_model(server, references):
    """A checkpoint of another codebook and other widths."""
    return server.add_model("other", references("wide")[0])


def other_size(graph):
    return change(graph, latent_width=128)


def no_plan(graph):
    graph["other"] = node("OtherConditioning", width=48)
    return change(graph, sample_positive=["other", 0])


def odd_latent(graph):
    graph["latent"] = node("EmptySD3LatentImage", width=112, height=64, batch_size=1)
    return graph


def other_codebook(graph):
    graph["load"]["inputs"]["model"] = "random/model_index.json"
    graph["planner"] = node("GLMImagePlannerLoader", model="other/model_index.json", dtype="auto", device="auto")
    return change(graph, plan_planner=["planner", 0])


def other_glyphs(graph):
    graph["glyphs"] = node(
        "GLMImageGlyphEncoderLoader", model="other/model_index.json", dtype="auto", device="auto",
        weights="from the checkpoint",
    )  # fmt: skip
    return change(graph, text_glyph_encoder=["glyphs", 0])


def with_area(graph):
    graph["area"] = node("ConditioningSetArea", conditioning=["text", 0], width=64, height=64, x=0, y=0, strength=1.0)
    return change(graph, sample_positive=["area", 0])


def fewer_images_than_plans(graph):
    return change(graph, plan_count=3, latent_batch_size=2)


def reference_without_vae(graph):
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    return change(graph, plan_reference_1=["picture", 0])


def long_reference(graph):
    graph["picture"] = node("EmptyImage", width=512, height=64, batch_size=1, color=0x3366CC)
    return change(graph, plan_reference_1=["picture", 0])


def another_reference(graph):
    """A reference put in by core's node, of which the plan knows nothing."""
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    graph["encoded"] = node("VAEEncode", pixels=["picture", 0], vae=["load", 3])
    graph["more"] = node("ReferenceLatent", conditioning=["text", 0], latent=["encoded", 0])
    return change(graph, sample_positive=["more", 0])


def empty_prompt(graph):
    return change(graph, plan_prompt="  \n")


def long_prompt(graph):
    return change(graph, plan_prompt="sign " * 9000)


def another_plan(graph):
    graph["plan2"] = node("GLMImagePlan", **{**graph["plan"]["inputs"], "seed": 77})
    graph["sample"] = decoder(4, plan="plan2")
    return graph


BAD = {
    "size": (other_size, "sample", "plan is 96x64 px, the latent 128x64 px; give both the same size"),
    "no plan": (no_plan, "sample", "positive conditioning holds no plan; make it with GLM-Image Conditioning"),
    "odd": (odd_latent, "sample", "latent is 112x64 px and GLM-Image takes multiples of 32"),
    "codebook": (other_codebook, "sample", "codebook of 100 tokens, this model one of 64"),
    "glyphs": (other_glyphs, "sample", "glyphs have 32 channels, this model takes 48"),
    "area": (with_area, "sample", "has an area, which GLM-Image cannot follow"),
    "batch": (fewer_images_than_plans, "sample", "has plans for 3 images, the latent is a batch of 2"),
    "no vae": (reference_without_vae, "text", "the plan has 1 reference images.*connect the vae of Load GLM-Image"),
    "aspect": (long_reference, "plan", "reference image 512x64 is 8.0:1, at most 4:1 is accepted"),
    "reference": (another_reference, "sample", "1 reference latents and 0 planned references"),
    "prompt": (empty_prompt, "plan", "the prompt is empty"),
    "long": (long_prompt, "plan", "the prompt has .* tokens and the image .*, the planner takes 8192 in all; shorten"),
    "plan": (another_plan, "sample", "positive was made from another plan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_graph_is_one_sentence_at_its_node(server, random_model, other_model, name):
    build, where, message = BAD[name]
    with pytest.raises(PromptError, match=message) as error:
        server.run(saving_latent(build(text_to_image(random_model)), plan=False))
    assert error.value.node == where
    assert "\n" not in error.value.text
    assert error.value.text.count(". ") == 0


def test_a_prompt_that_is_too_long_is_refused_before_the_planner_is_loaded(server, random_model):
    before = server.log.count("Requested to load ManagedPlanner")
    graph = long_prompt(text_to_image(random_model, load_planner_dtype="bf16"))
    with pytest.raises(PromptError, match="shorten the prompt"):
        server.run(saving_latent(graph))
    assert server.log.count("Requested to load ManagedPlanner") == before
    server.run(saving_latent(change(graph, plan_prompt="a sign")))
    assert server.log.count("Requested to load ManagedPlanner") == before + 1


def test_a_latent_of_another_model_is_refused(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["latent"] = node("EmptyHunyuanLatentVideo", width=96, height=64, length=1, batch_size=1)
    with pytest.raises(PromptError, match=r"GLM-Image takes \(images, 16, height, width\)") as error:
        server.run(graph)
    assert error.value.node == "sample"


def test_sizes_out_of_range_are_refused_before_anything_runs(server, random_model):
    with pytest.raises(PromptError, match="bigger than max|4096"):
        server.run(text_to_image(random_model, width=8192))


def esrgan(width: int = 8, growth: int = 32) -> dict[str, torch.Tensor]:
    """Random weights of the smallest ESRGAN that upscales twice."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv_first": (width, 12), "conv_body": (width, width), "conv_up1": (width, width)}
    shapes |= {"conv_up2": (width, width), "conv_hr": (width, width), "conv_last": (3, width)}
    for block in range(1, 4):
        for i in range(1, 6):
            out = width if i == 5 else growth
            shapes[f"body.0.rdb{block}.conv{i}"] = (out, width + growth * (i - 1))
    state = {}
    for name, (out, inside) in shapes.items():
        state[f"{name}.weight"] = 0.1 * torch.randn(out, inside, 3, 3, generator=generator)
        state[f"{name}.bias"] = torch.zeros(out)
    return state


def test_another_models_nodes_work_in_the_same_graph(server, random_model):
    """An upscaler's weights before the planner and behind the decoder, and another model's latent."""
    folder = server.base / "models" / "upscale_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(esrgan(), folder / "tiny.safetensors")
    graph = text_to_image(random_model, 96, 64)
    graph["latent"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=1)
    graph["zero_star"] = node("CFGZeroStar", model=["load", 1])
    graph["sample"] = sampler(model=["zero_star", 0])
    graph["upscaler"] = node("UpscaleModelLoader", model_name="tiny.safetensors")
    graph["larger"] = node("ImageUpscaleWithModel", upscale_model=["upscaler", 0], image=["image", 0])
    graph["size"] = node("GetImageSize", image=["larger", 0])
    graph["width"] = node("PreviewAny", source=["size", 0])
    graph["save"]["inputs"]["images"] = ["larger", 0]
    outputs = server.run(graph)
    assert outputs["width"]["text"] == ["192"]


def test_other_nodes_do_not_take_our_sockets_by_mistake(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    with pytest.raises(PromptError, match="received_type|mismatch|GLM_IMAGE_PLAN"):
        server.run(change(graph, sample_positive=["plan", 0]))


def test_two_models_in_one_graph_keep_apart(server, random_model, other_model):
    graph = saving_latent(text_to_image(random_model))
    second = saving_latent(text_to_image(other_model))
    for name, entry in second.items():
        inputs = {key: [f"b_{v[0]}", v[1]] if isinstance(v, list) else v for key, v in entry["inputs"].items()}
        graph[f"b_{name}"] = node(entry["class_type"], **inputs)
    outputs = server.run(graph)
    one, two = Plan.load(server.files(outputs, "plans", "plans")[0]), plan_of(server, outputs, "b_plans")
    assert (one.codebook_size, two.codebook_size) == (64, 100)
    assert difference(latent_of(server, outputs), latent_of(server, outputs, "b_keep")) > 0.1
