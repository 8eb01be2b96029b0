"""What users do while graphs run: stop them, watch them, queue several; and plans kept as files."""

import pytest
import torch
from comfyui_glm_image.tests.comfyui.events import Events
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of, plan_of
from safetensors.torch import save_file


def progress_of(events, node_id):
    return [data for name, data in events if name == "progress" and data["node"] == node_id]


def stop_when(server, graph, node_id, steps):
    """Queue a graph and interrupt it once `node_id` reports `steps` -> everything seen, and how far it had come."""
    with Events(server.url, "stopper") as events:
        prompt = server.queue(graph, "stopper")
        for name, data in events:
            if name == "progress" and data["node"] == node_id and data["value"] >= steps:
                break
        server.post("/interrupt", {})
        return events.until_done(prompt), data


def test_a_plan_stops_within_a_token(server, random_model):
    graph = text_to_image(random_model, 512, 512, plan_seed=41)
    seen, at = stop_when(server, graph, "plan", 20)
    assert seen[-1][0] == "execution_interrupted" and seen[-1][1]["node_id"] == "plan"
    later = [data["value"] for data in progress_of(seen, "plan")]
    print(f"interrupted at token {at['value']} of {at['max']}, last token {max(later, default=at['value'])}")
    assert at["max"] == 16 * 16 + 16 * 16
    assert max(later, default=0) < at["max"] / 2


def test_denoising_stops_within_a_step(server, random_model):
    graph = text_to_image(random_model, 256, 256, sample_steps=200, sample_seed=42)
    seen, at = stop_when(server, graph, "sample", 3)
    assert seen[-1][0] == "execution_interrupted" and seen[-1][1]["node_id"] == "sample"
    assert max((data["value"] for data in progress_of(seen, "sample")), default=0) < 100


def test_the_next_run_after_an_interruption_is_whole(server, random_model):
    graph = saving_latent(text_to_image(random_model, 96, 64, plan_seed=43))
    first = server.run(graph)
    stop_when(server, text_to_image(random_model, 512, 512, plan_seed=44), "plan", 10)
    again = server.run(change(graph, plans_filename_prefix="plans/again", keep_filename_prefix="again"))
    assert torch.equal(plan_of(server, first).prior_token_ids_d32, plan_of(server, again).prior_token_ids_d32)


def test_planning_shows_every_pass_and_a_growing_picture(server, random_model):
    graph = saving_latent(text_to_image(random_model, 128, 128, plan_seed=51))
    with Events(server.url, "watcher") as events:
        seen = events.until_done(server.queue(graph, "watcher"))
    assert seen[-1][0] == "execution_success"
    values = [data["value"] for data in progress_of(seen, "plan")]
    total = 16 * 16 + 4 * 4
    assert values == sorted(set(values)) and values[-1] == total  # a pass plans several tokens at most
    previews = [data for name, data in seen if name == "preview"]
    assert all(data[:2] == b"\xff\xd8" for data in previews)
    assert len(previews) >= total // 16 + 6  # of the plan's passes, then of each step of sampling


def test_two_queued_jobs_are_both_done_as_if_alone(server, random_model):
    graphs = [saving_latent(text_to_image(random_model, plan_seed=seed, sample_seed=seed)) for seed in (61, 62)]
    prompts = [server.queue(graph) for graph in graphs]
    queued = [latent_of(server, server.wait(prompt)) for prompt in prompts]
    alone = [
        latent_of(server, server.run(change(graph, keep_filename_prefix=f"alone{i}", sample_cfg=1.5000001)))
        for i, graph in enumerate(graphs)
    ]
    assert difference(queued[0], queued[1]) > 0.1
    for one, other in zip(queued, alone):
        assert difference(one, other) < 1e-4


def test_changing_one_part_of_the_model_does_not_read_the_others_again(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=63), plan=False)
    server.run(graph)
    before = server.log.count("Requested to load ManagedPlanner")
    server.run(change(graph, load_decoder_dtype="bf16"))
    assert server.log.count("Requested to load ManagedPlanner") == before


@pytest.mark.parametrize(("changes", "again"), [({"load_decoder_dtype": "bf16"}, False), ({"plan_seed": 68}, True)])
def test_only_what_a_plan_is_made_of_makes_it_anew(server, random_model, changes, again):
    graph = saving_latent(text_to_image(random_model, plan_seed=67))
    first = plan_of(server, server.run(graph))
    with Events(server.url, "again") as events:
        done = server.queue(change(graph, keep_filename_prefix=f"again{again}", **changes), "again")
        assert bool(progress_of(events.until_done(done), "plan")) == again
    second = plan_of(server, server.wait(done))
    assert torch.equal(first.prior_token_ids_d32, second.prior_token_ids_d32) != again


def test_another_reference_makes_another_plan(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=69))
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    graph = change(graph, plan_reference_1=["picture", 0], text_vae=["load", 3])
    first, second = (plan_of(server, server.run(change(graph, picture_color=color))) for color in (0x3366CC, 0xFFFFFF))
    assert not torch.equal(first.references[0].pixels, second.references[0].pixels)


def test_a_saved_plan_is_offered_and_draws_the_same_picture(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=71))
    outputs = server.run(graph)
    name = "output/" + server.files(outputs, "plans", "plans")[0].relative_to(server.base / "output").as_posix()
    assert name in server.options("GLMImageLoadPlan", "plan")
    again = change(graph, keep_filename_prefix="again")
    again["plan"] = node("GLMImageLoadPlan", plan=name)
    del again["plans"]
    assert difference(latent_of(server, server.run(again)), latent_of(server, outputs)) < 1e-5


@pytest.mark.parametrize("name", ["output/../../secret.safetensors", "/etc/passwd", "elsewhere/plan.safetensors"])
def test_no_file_outside_the_folders_is_read_as_a_plan(server, random_model, name):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["plan"] = node("GLMImageLoadPlan", plan=name)
    with pytest.raises(PromptError) as error:
        server.run(graph)
    assert error.value.node == "plan"


def test_a_file_that_is_no_plan_is_named(server, random_model):
    save_file({"x": torch.zeros(1)}, server.base / "input" / "weights.safetensors")
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["plan"] = node("GLMImageLoadPlan", plan="input/weights.safetensors")
    with pytest.raises(PromptError, match="plan 'input/weights.safetensors' is not in the list; choose from"):
        server.run(graph)


def test_another_seed_of_the_sampler_never_touches_the_planner(server, random_model):
    graph = saving_latent(text_to_image(random_model, 96, 64, plan_seed=71, sample_seed=1), plan=False)
    server.run(graph)
    start = len(server.log)
    with Events(server.url, "again") as events:
        seen = events.until_done(server.queue(change(graph, sample_seed=2), "again"))
    ran = {data["node"] for name, data in seen if name == "executing" and data["node"]}
    assert ran == {"sample", "keep"}
    assert progress_of(seen, "plan") == []
    assert "Requested to load Managed" not in server.log[start:]  # neither planner nor glyph encoder
