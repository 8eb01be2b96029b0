"""Plans that cross a server: drawn by an engine that takes one, made by a planner's server."""

import threading
import time

import pytest
import torch
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED
from comfyui_glm_image.pipeline.plan import Plan, Reference
from comfyui_glm_image.pipeline.planning.make_plan import PlannerSettings, PlanRequest
from comfyui_glm_image.pipeline.planning.remote_plan import given_plans, plan_remotely
from comfyui_glm_image.pipeline.remote import CancelledError, Job, generate, pool
from comfyui_glm_image.pipeline.remote.request import GivenPlan, ImageRequest
from comfyui_glm_image.tests.remote.contract import CODEBOOK, colour
from comfyui_glm_image.tests.remote.protocols import Effect
from PIL import Image

GRID, PREVIEW = (2, 3), (13, 19)
PLANNED = GRID[0] * GRID[1] + PREVIEW[0] * PREVIEW[1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "BACK_OFF", 0.05)
    monkeypatch.setattr(pool, "HEALTH_INTERVAL", 0.1)


@pytest.fixture(scope="module")
def settings():
    return PlannerSettings.from_folder(BUNDLED)


def saved(rows=1, references=()):
    ids = torch.arange(rows * 6).view(rows, 6)
    return Plan(ids, GRID, CODEBOOK, [f"sign {row} 'A'" for row in range(rows)], 5, references=list(references))


def request(**changes):
    return PlanRequest("a sign 'OPEN'", 64, 96, **{"seed": 7, **changes})


def plan(settings, servers, **changes):
    urls = " ".join(server.url for server in servers)
    return plan_remotely(settings, request(**changes), urls, seconds=5.0)


# Drawn by an engine


@pytest.mark.parametrize("engine", ["auto", "vllm-omni-chat"])
def test_vllm_omni_draws_a_given_plan_whatever_its_planner_makes(serve, engine):
    server = serve()
    made = saved()
    generated = generate(Job("", server.url, engine=engine, seed=300, steps=7, plans=given_plans(made)))
    tokens = tuple(made.prior_token_ids[0].tolist())
    assert server.effects == [Effect(96, 64, None, 300, 7, 1.5, prior_token_ids=tokens)]
    assert generated.images[0].getpixel((5, 5)) == colour(300)
    ((_, fields, _),) = server.requests
    assert fields["messages"][0]["content"] == "sign 0 'A'"
    assert "its planner makes a plan of its own first" in generated.report


def test_each_plan_of_a_batch_is_drawn_with_its_own_prompt_and_seed(serve):
    server = serve()
    made = saved(3)
    generated = generate(Job("", server.url, seed=8, plans=given_plans(made), parallel=1))
    assert generated.seeds == [8, 9, 10]
    sent = {effect.seed: effect.prior_token_ids for effect in server.effects}
    assert sent == {8 + row: tuple(made.prior_token_ids[row].tolist()) for row in range(3)}
    assert sorted(fields["messages"][0]["content"] for _, fields, _ in server.requests) == made.prompts


def test_one_plan_is_drawn_with_several_seeds(serve):
    server = serve()
    generated = generate(Job("another 'text'", server.url, seed=8, count=2, plans=given_plans(saved()), parallel=1))
    assert generated.seeds == [8, 9]
    assert len({effect.prior_token_ids for effect in server.effects}) == 1
    assert {fields["messages"][0]["content"] for _, fields, _ in server.requests} == {"another 'text'"}


@pytest.mark.parametrize(("engine", "reason"), [("sglang", "sglang takes no plans; send it to vLLM-Omni")])
def test_a_server_that_takes_no_plan_is_sent_none(serve, engine, reason):
    server, able = serve(engine), serve()
    with pytest.raises(InputError, match=reason):
        generate(Job("", server.url, plans=given_plans(saved())))
    report = generate(Job("", f"{server.url} {able.url}", plans=given_plans(saved()))).report
    assert f"{server.url} (sglang) was left out: sglang takes no plans" in report
    assert not server.requests and len(able.requests) == 1


def test_plans_that_no_engine_can_draw_are_refused_before_anything_is_sent(serve):
    server = serve()
    reference = Reference(torch.zeros(32, 32, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), (1, 1))
    with pytest.raises(InputError, match="has reference images, which no engine's decoder takes"):
        given_plans(saved(references=[reference]))
    with pytest.raises(InputError, match="3 plans and 2 images; use 1, or as many"):
        generate(Job("", server.url, count=2, plans=given_plans(saved(3))))
    with pytest.raises(InputError, match="send the plan or reference images, not both"):
        generate(Job("", server.url, references=[Image.new("RGB", (32, 32))], plans=given_plans(saved())))
    with pytest.raises(InputError, match="a plan of 96x64 has 24 tokens of 16 px, got 6"):
        GivenPlan("x", 96, 64, tuple(range(6)))
    with pytest.raises(InputError, match="the plan is one of 96x64, not of 64x64"):
        ImageRequest("x", 64, 64, plan=given_plans(saved())[0])
    assert not server.requests


# Made by a planner's server


def test_a_planner_s_server_gives_an_ordinary_plan(serve, settings, tmp_path):
    server = serve("sglang-planner")
    done = []
    made = plan_remotely(settings, request(count=2), server.url, progress=lambda *at: done.append(at))
    expected = [[(7 + row + place) % CODEBOOK for place in range(PLANNED)] for row in range(2)]
    assert made.plan.preview_token_ids.tolist() == [row[: -GRID[0] * GRID[1]] for row in expected]
    assert made.plan.prior_token_ids_d32.tolist() == [row[-GRID[0] * GRID[1] :] for row in expected]
    assert (made.plan.grid, made.plan.preview_grid, made.plan.seed) == (GRID, PREVIEW, 7)
    assert done[-1] == (2, 2) and "planned 2 in" in made.report and "randomness" not in made.report
    made.plan.save(tmp_path / "a.safetensors")
    assert Plan.load(tmp_path / "a.safetensors").prompts == ["a sign 'OPEN'"] * 2


def test_the_prompt_s_tokens_both_grids_and_the_checkpoint_s_settings_are_sent(serve, settings):
    server = serve("sglang-planner")
    plan(settings, [server], top_p=0.5)
    ((path, fields, _),) = server.requests
    assert path == "/generate"
    assert fields["input_ids"] == settings.prepare(request()).encoded[0].ids.tolist()
    assert fields["image_data"] == [{"image_grid_thw": [[1, *GRID], [1, *PREVIEW]]}]
    assert fields["sampling_params"] == {
        "temperature": settings.sampling.temperature,
        "top_p": 0.5,
        "top_k": settings.sampling.top_k or -1,
        "max_new_tokens": PLANNED,
        "ignore_eos": True,
        "sampling_seed": 7,
    }


def test_a_server_that_does_not_count_seeds_is_reported(serve, settings):
    server = serve("sglang-planner")
    server.repeats = False
    assert "unless it is started with --enable-deterministic-inference" in plan(settings, [server]).report


WRONG = {
    "short": (lambda tokens: tokens[:-1], f"sent {PLANNED - 1} of {PLANNED} tokens of the plan"),
    "long": (lambda tokens: [*tokens, 1], f"sent {PLANNED + 1} of {PLANNED} tokens of the plan"),
    "end token": (
        lambda tokens: [*tokens[:9], 641, *tokens[10:]],
        "sent token 641 at place 10 of the plan, where 0 to",
    ),
    "negative": (lambda tokens: [-1, *tokens[1:]], "sent token -1 at place 1 of the plan"),
    "text": (lambda tokens: "1, 2, 3", "answered without the tokens of a plan"),
    "booleans": (lambda tokens: [True] * len(tokens), "answered without the tokens of a plan"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_a_plan_that_is_not_whole_is_none(serve, settings, change, reason):
    server = serve("sglang-planner")
    server.on_plan = change
    with pytest.raises(GlmImageError, match=reason):
        plan(settings, [server])


def test_tokens_that_a_seed_gives_every_time_are_not_asked_for_again(serve, settings):
    counts, again = serve("sglang-planner"), serve("sglang-planner")
    again.repeats = False
    for server in (counts, again):
        server.on_plan = lambda tokens: [CODEBOOK, *tokens[1:]]
        with pytest.raises(GlmImageError, match="use another seed"):
            plan(settings, [server])
    assert (len(counts.requests), len(again.requests)) == (1, 3)


@pytest.mark.parametrize("fault", ["400", "500", "half", "html", "announced gigabyte"])
def test_failures_of_a_server_are_told(serve, settings, fault):
    with pytest.raises(GlmImageError, match="127.0.0.1"):
        plan(settings, [serve("sglang-planner", fault)])


@pytest.mark.parametrize("engine", ["sglang", "vllm-omni"])
def test_a_server_that_is_no_planner_is_refused(serve, settings, engine):
    server = serve(engine)
    with pytest.raises(GlmImageError, match="serves no planner of GLM-Image; start one with 'sglang serve"):
        plan(settings, [server])
    assert not server.requests


def test_several_servers_share_the_plans_though_one_dies(serve, settings):
    dying, well = serve("sglang-planner", seconds=0.02), serve("sglang-planner", seconds=0.02)
    dying.on_draw = lambda count: dying.die() if count == 3 else None
    made = plan(settings, [dying, well], count=12)
    assert made.plan.preview_token_ids[:, 0].tolist() == [7 + row for row in range(12)]
    assert "failed attempts were repeated" in made.report


def test_a_cancelled_plan_closes_its_connection_and_leaves_the_server_free(serve, settings):
    server, cancelled = serve("sglang-planner", "hang"), threading.Event()
    server.on_draw = lambda count: cancelled.set()
    told = []
    with pytest.raises(CancelledError):
        plan_remotely(settings, request(), server.url, tell=told.append, cancelled=cancelled.is_set)
    end = time.monotonic() + 5
    while not server.closed:
        assert time.monotonic() < end
        time.sleep(0.01)
    server.fault = None
    begin = time.monotonic()
    plan(settings, [server])
    assert time.monotonic() - begin < 2
    assert told[-1] == "cancelled; the servers drop what they had begun"


def test_what_no_planner_s_server_can_plan_is_refused_before_anything_is_sent(serve, settings):
    server = serve("sglang-planner")
    with pytest.raises(InputError, match="takes no reference images"):
        plan(settings, [server], images=[Image.new("RGB", (64, 64))])
    with pytest.raises(InputError, match="is out of range for a server; use 0 to 2"):
        plan(settings, [server], seed=2**63)
    assert not server.requests
