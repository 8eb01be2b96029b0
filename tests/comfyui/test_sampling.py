"""The decoder under ComfyUI's samplers against the pipeline's own loop, on a checkpoint of random weights."""

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.glm_image import to_pil
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.graphs import (
    change,
    custom_sampler,
    decoder,
    node,
    sampler,
    saving_latent,
    text_to_image,
)
from PIL import Image
from safetensors.torch import load_file

TOLERANCE = 1e-3  # largest difference over the largest value
SIZES = [(96, 64), (128, 128), (64, 224)]


def latent_of(server, outputs, name="keep") -> torch.Tensor:
    """The VAE's latents that a SaveLatent node wrote."""
    (path,) = server.files(outputs, name, "latents")
    return load_file(path)["latent_tensor"]


def plan_of(server, outputs, name="plans") -> Plan:
    (path,) = server.files(outputs, name, "plans")
    return Plan.load(path)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def drawn(pipeline, plan, steps, seed=5, **options) -> torch.Tensor:
    """The pipeline's picture of a plan, as latents of the VAE."""
    return pipeline.vae.denormalise(pipeline.denoise(plan, steps, 1.5, seed, **options))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_ksampler_draws_what_the_pipeline_draws(server, random_model, pipeline, width, height):
    graph = saving_latent(text_to_image(random_model, width, height, sample_steps=50))
    outputs = server.run(graph)
    wanted = drawn(pipeline, plan_of(server, outputs), 50)
    found = difference(latent_of(server, outputs), wanted)
    print(f"{width}x{height}: {found:.1e}")
    assert found < TOLERANCE


def test_the_plan_is_the_pipelines(server, random_model, pipeline):
    outputs = server.run(saving_latent(text_to_image(random_model)))
    plan = plan_of(server, outputs)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan.prior_token_ids_d32, wanted.prior_token_ids_d32)
    assert torch.equal(plan.preview_token_ids, wanted.preview_token_ids)
    assert plan.prompts == wanted.prompts and plan.seed == 3


def test_the_saved_picture_is_the_pipelines(server, random_model, pipeline):
    graph = text_to_image(random_model) | custom_sampler(6)
    graph["plans"] = node("GLMImageSavePlan", plan=["plan", 0], filename_prefix="p")
    outputs = server.run(graph)
    (wanted,) = to_pil(pipeline.decode(pipeline.denoise(plan_of(server, outputs), 6, 1.5, 5)))
    (path,) = server.files(outputs, "save")
    off = np.asarray(Image.open(path)).astype(int) - np.asarray(wanted).astype(int)
    assert np.abs(off).max() <= 1


@pytest.mark.parametrize("name", ["custom", "decode", "patched", "advanced"])
def test_every_way_to_sample_gives_the_same_latent(server, random_model, pipeline, name):
    """SamplerCustom on our sigmas, our Decode node, a bare and a shifted model, and two KSamplers in a row."""
    graph = text_to_image(random_model)
    if name == "custom":
        graph |= custom_sampler(6)
    if name == "decode":
        graph["sample"] = decoder(6)
    if name == "patched":
        graph |= custom_sampler(6)
        graph["shift"] = node("ModelSamplingGLMImage", model=["load", 1], width=96, height=64, shift=0.0)
        graph["sample"]["inputs"]["model"] = graph["sigmas"]["inputs"]["model"] = ["shift", 0]
    if name == "advanced":
        graph |= two_halves(6)
    outputs = server.run(saving_latent(graph))
    wanted = drawn(pipeline, plan_of(server, outputs), 6)
    tolerance = 2e-2 if name == "advanced" else TOLERANCE  # KSampler's "simple" rounds 6 steps to other times
    assert difference(latent_of(server, outputs), wanted) < tolerance


def two_halves(steps: int) -> dict:
    shared = {"steps": steps, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "noise_seed": 5}
    shared |= {"model": ["load", 1], "positive": ["text", 0], "negative": ["text", 1]}
    return {
        "first": node(
            "KSamplerAdvanced",
            **shared,
            latent_image=["latent", 0],
            add_noise="enable",
            start_at_step=0,
            end_at_step=steps // 2,
            return_with_leftover_noise="enable",
        ),
        "sample": node(
            "KSamplerAdvanced",
            **shared,
            latent_image=["first", 0],
            add_noise="disable",
            start_at_step=steps // 2,
            end_at_step=steps,
            return_with_leftover_noise="disable",
        ),
    }


@pytest.mark.parametrize("name", ["dpmpp_2m", "uni_pc", "res_multistep", "euler_ancestral"])
def test_other_samplers_give_finite_pictures(server, random_model, name):
    graph = saving_latent(text_to_image(random_model), plan=False)
    latent = latent_of(server, server.run(graph | {"sample": sampler(name, "sgm_uniform", 8)}))
    assert torch.isfinite(latent).all()
    assert latent.std() > 0.1


def test_sigmas_of_ones_own_give_a_finite_picture(server, random_model):
    graph = saving_latent(text_to_image(random_model) | custom_sampler(6), plan=False)
    graph["sigmas"] = node("BetaSamplingScheduler", model=["load", 1], steps=5, alpha=0.6, beta=0.6)
    assert torch.isfinite(latent_of(server, server.run(graph))).all()


def test_a_part_of_the_schedule_keeps_some_of_the_picture(server, random_model):
    """Denoising by 0.5 in KSampler and by half of our sigmas is the same picture, nearer to its start."""
    graph = text_to_image(random_model)
    graph["again"] = sampler(steps=10, seed=9, denoise=0.5, latent_image=["sample", 0])
    half = custom_sampler(10, seed=9)
    half["sigmas"]["inputs"]["denoise"] = 0.5
    half["sample"]["inputs"]["latent_image"] = ["sample", 0]
    graph |= {"euler": half["euler"], "sigmas": half["sigmas"], "custom": half["sample"]}
    for name in ("again", "custom", "sample"):
        graph["keep_" + name] = node("SaveLatent", samples=[name, 0], filename_prefix=name)
    outputs = server.run(graph)
    start, again, custom = (latent_of(server, outputs, f"keep_{name}") for name in ("sample", "again", "custom"))
    assert difference(custom, again) < TOLERANCE
    assert difference(again, start) > 0.01


def test_a_batch_of_plans_draws_each_row_as_the_pipeline_does(server, random_model, pipeline):
    graph = text_to_image(random_model, plan_count=3)
    graph["sample"] = decoder(4, images=2)
    outputs = server.run(saving_latent(graph))
    plan, latent = plan_of(server, outputs), latent_of(server, outputs)
    assert len(plan) == 3 and len(latent) == 6
    assert len({tuple(row.tolist()) for row in plan.prior_token_ids_d32}) == 3
    assert difference(latent[:3], drawn(pipeline, plan, 4)) < TOLERANCE
    assert difference(latent[3:], drawn(pipeline, plan, 4, seed=8)) < TOLERANCE


@pytest.mark.parametrize("count", [1, 2])
def test_references_reach_planner_and_decoder(server, random_model, pipeline, count):
    """With sides that are no multiples of 32, which have to agree in tokens and latents."""
    rng = np.random.default_rng(7)
    pictures = [Image.fromarray(rng.integers(0, 256, (150 + 40 * i, 170, 3), dtype=np.uint8)) for i in range(count)]
    graph = text_to_image(random_model)
    for i, picture in enumerate(pictures):
        picture.save(server.base / "input" / f"reference_{i}.png")
        graph[f"picture_{i}"] = node("LoadImage", image=f"reference_{i}.png")
        graph["plan"]["inputs"][f"reference_{i + 1}"] = [f"picture_{i}", 0]
    graph["text"]["inputs"]["vae"] = ["load", 3]
    outputs = server.run(saving_latent(graph | custom_sampler(6)))
    plan = plan_of(server, outputs)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, pictures, 3, 0.9, 0.75)
    assert torch.equal(plan.prior_token_ids_d32, wanted.prior_token_ids_d32)
    found = latent_of(server, outputs)
    assert difference(found, drawn(pipeline, wanted, 6)) < TOLERANCE
    blind = Plan(wanted.prior_token_ids_d32, wanted.grid, wanted.codebook_size, wanted.prompts, wanted.seed)
    assert difference(found, drawn(pipeline, blind, 6)) > 0.01


def test_tiled_decoding_and_encoding_stay_close_to_whole(server, random_model):
    graph = text_to_image(random_model, 320, 320, sample_steps=2)
    graph["tiles"] = node(
        "VAEDecodeTiled", samples=["sample", 0], vae=["load", 3], tile_size=192, overlap=64, temporal_size=64,
        temporal_overlap=8,
    )  # fmt: skip
    graph["save_tiles"] = node("SaveImage", images=["tiles", 0], filename_prefix="tiles")
    graph["back"] = node("VAEEncode", pixels=["image", 0], vae=["load", 3])
    graph["keep"] = node("SaveLatent", samples=["back", 0], filename_prefix="back")
    outputs = server.run(graph)
    whole, tiled = (np.asarray(Image.open(server.files(outputs, n)[0])).astype(int) for n in ("save", "save_tiles"))
    assert whole.shape == tiled.shape == (320, 320, 3)
    assert np.abs(whole - tiled).mean() < 8
    assert latent_of(server, outputs).shape == (1, 16, 40, 40)


def test_combining_a_conditioning_with_itself_changes_nothing(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    plain = latent_of(server, server.run(graph))
    graph["both"] = node("ConditioningCombine", conditioning_1=["text", 0], conditioning_2=["text", 0])
    graph["sample"]["inputs"]["positive"] = ["both", 0]
    assert difference(latent_of(server, server.run(graph)), plain) < TOLERANCE


def test_two_conditionings_share_the_steps(server, random_model):
    """The first half of the time from one, the rest from another; and their average is neither."""
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["other"] = node(**{"kind": "GLMImageConditioning"}, **graph["text"]["inputs"])
    graph["other"]["inputs"] |= {"glyph_mode": "list", "glyph_texts": "SHUT"}
    for name, start, end in (("text", 0.0, 0.5), ("other", 0.5, 1.0)):
        graph[f"{name}_part"] = node("ConditioningSetTimestepRange", conditioning=[name, 0], start=start, end=end)
    graph["both"] = node("ConditioningCombine", conditioning_1=["text_part", 0], conditioning_2=["other_part", 0])
    graph["mean"] = node(
        "ConditioningAverage", conditioning_to=["text", 0], conditioning_from=["other", 0],
        conditioning_to_strength=0.5,
    )  # fmt: skip
    found = {}
    for name in ("text", "other", "both", "mean"):
        found[name] = latent_of(server, server.run(change(graph, sample_positive=[name, 0])))
    names = list(found)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert difference(found[a], found[b]) > 1e-4, (a, b)
    assert all(torch.isfinite(latent).all() for latent in found.values())
