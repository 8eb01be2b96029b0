"""Samplers and schedules that miss on flow models: measured on a flow whose answer is known, and said at the node."""

import pytest
import torch
from comfyui_glm_image.tests.comfyui.events import Events, messages
from comfyui_glm_image.tests.comfyui.graphs import change, custom_sampler, node, sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of
from comfyui_glm_image.tools import samplers


@pytest.fixture(scope="module")
def measured(inside, random_folder):
    return inside("samplers", random_folder)


def test_exactly_the_samplers_that_miss_are_named(measured):
    found = {name for name, (mean, spread) in measured["samplers"].items() if samplers.misses(mean, spread)}
    assert found == set(measured["warned"])
    assert all(name in measured["samplers"] for name in measured["warned"])


def test_every_scheduler_of_ksampler_ends_where_the_flow_does(measured):
    assert not [name for name, values in measured["schedulers"].items() if samplers.misses(*values)]


def said(server, graph) -> list[tuple[str, str]]:
    """What nodes say while a graph runs, which must end in a finite latent."""
    with Events(server.url, "samplers") as events:
        prompt = server.queue(graph, "samplers")
        seen = messages(events.until_done(prompt))
    assert torch.isfinite(latent_of(server, server.wait(prompt))).all()
    return [(at, text) for at, text in seen if at == "sample"]


@pytest.fixture(scope="module")
def graph(random_model):
    return saving_latent(text_to_image(random_model), plan=False)


def test_a_sampler_that_misses_says_so_once_at_its_node(server, graph):
    start = len(server.log)
    ((at, text),) = said(server, graph | {"sample": sampler("ddpm", "simple", 4)})
    assert text.startswith("sampler ddpm misses on flow models")
    assert server.log[start:].count("sampler ddpm misses") == 1
    assert said(server, graph | {"sample": sampler("dpmpp_2m", "simple", 4)}) == []


def test_sigmas_and_samplings_of_other_models_say_so(server, graph):
    other = graph | custom_sampler(4)
    other["sigmas"] = node("AlignYourStepsScheduler", model_type="SD1", steps=4, denoise=1.0)
    ((_, text),) = said(server, other)
    assert text.startswith("the sigmas begin at 14.6 where a flow's begin at 1")
    discrete = graph | {"eps": node("ModelSamplingDiscrete", model=["load", 1], sampling="eps", zsnr=False)}
    ((_, text),) = said(server, change(discrete, sample_model=["eps", 0]))
    assert text.startswith("the model's sampling is not a flow's")
    shifted = graph | {"flow": node("ModelSamplingAuraFlow", model=["load", 1], shift=3.0)}
    assert said(server, change(shifted, sample_model=["flow", 0])) == []


def test_a_guidance_that_the_model_does_not_know_says_so(server, graph):
    guided = graph | {"flux": node("FluxGuidance", conditioning=["text", 0], guidance=6.0)}
    ((_, text),) = said(server, change(guided, sample_positive=["flux", 0]))
    assert text.startswith("FluxGuidance has no effect on GLM-Image")
