"""A second sampler at another size, masks with bounds, and nodes that are bypassed."""

import pytest
from comfyui_glm_image.tests.comfyui.graphs import change, node, sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of


def upscaled(model: str, width: int, height: int):
    """A first sampling at 96x64 px, its latent enlarged, and a second sampling of half the schedule."""
    graph = saving_latent(text_to_image(model, 96, 64, plan_seed=3, sample_steps=4), plan=False)
    inputs = {"samples": ["sample", 0], "upscale_method": "bislerp", "crop": "disabled"}
    graph["larger"] = node("LatentUpscale", width=width, height=height, **inputs)
    graph["second"] = sampler(steps=4, seed=6, latent_image=["larger", 0], denoise=0.5)
    return change(graph, keep_samples=["second", 0])


def test_a_latent_of_twice_the_size_takes_the_same_conditioning_as_a_resized_plan(server, random_model):
    graph = upscaled(random_model, 192, 128)
    automatic = latent_of(server, server.run(graph))
    assert automatic.shape[-2:] == (16, 24)
    graph["resized"] = node("GLMImageResizePlan", plan=["plan", 0], width=32, height=32, latent=["larger", 0])
    graph["text2"] = {**graph["text"], "inputs": {**graph["text"]["inputs"], "plan": ["resized", 0]}}
    chosen = change(graph, second_positive=["text2", 0], second_negative=["text2", 1])
    assert difference(latent_of(server, server.run(chosen)), automatic) < 1e-5


def test_another_size_needs_a_resized_plan_and_the_message_names_the_node(server, random_model):
    graph = upscaled(random_model, 160, 96)
    with pytest.raises(PromptError, match="Resize GLM-Image Plan") as error:
        server.run(graph)
    assert error.value.node == "second"
    graph["resized"] = node("GLMImageResizePlan", plan=["plan", 0], width=160, height=96)
    graph["text2"] = {**graph["text"], "inputs": {**graph["text"]["inputs"], "plan": ["resized", 0]}}
    chosen = change(graph, second_positive=["text2", 0], second_negative=["text2", 1])
    assert latent_of(server, server.run(chosen)).shape[-2:] == (12, 20)


def test_a_mask_cut_to_its_bounds_is_refused_in_one_sentence(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["mask"] = node("SolidMask", value=1.0, width=96, height=64)
    inputs = {"conditioning": ["text", 0], "mask": ["mask", 0], "strength": 1.0}
    graph["masked"] = node("ConditioningSetMask", set_cond_area="mask bounds", **inputs)
    with pytest.raises(PromptError, match="set_cond_area to default") as error:
        server.run(change(graph, sample_positive=["masked", 0]))
    assert error.value.node == "sample"


def test_a_listed_text_wins_and_the_node_shows_what_it_renders(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph = change(graph, plan_prompt="it's a sign that says \"OPEN", text_glyph_mode="prompt_order")
    shown = server.run(graph)["text"]["text"][0]
    assert shown.startswith("no texts: ") and "not closed" in shown
    listed = server.run(change(graph, text_glyph_texts="SALE\nNOW"))["text"]["text"][0]
    assert listed.startswith("texts: SALE | NOW")
    kept = change(graph, plan_prompt="a sign that says 'OPEN'", text_glyph_texts="SALE", text_glyph_mode="reference")
    assert server.run(kept)["text"]["text"][0] == (
        "glyph_texts are not read in mode reference; choose prompt_order or list\ntexts: OPEN"
    )


def test_a_bypass_can_carry_every_output_of_the_nodes_before_a_sampler(server):
    for kind in ("GLMImageLayoutDecoderGuidance", "GLMImageLayoutGuidance", "GLMImageLoRA", "ModelSamplingGLMImage"):
        info = server.get(f"/object_info/{kind}")[kind]
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert set(info["output"]) <= {declared[0] for declared in inputs.values() if isinstance(declared[0], str)}
