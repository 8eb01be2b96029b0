"""A planner in a server of its own: SGLang plans, and what it planned is drawn here."""

import threading
import time

import pytest
import torch
from comfyui_glm_image.pipeline.images import to_pil
from comfyui_glm_image.pipeline.planning.make_plan import PlanRequest
from comfyui_glm_image.pipeline.planning.remote_plan import plan_remotely
from comfyui_glm_image.pipeline.remote import CancelledError
from comfyui_glm_image.tests.engines import engine
from comfyui_glm_image.tests.engines.conftest import PROMPT, SEEDS, SIZE, STEPS, reads

pytestmark = pytest.mark.own_engines
WIDTH, HEIGHT = map(int, SIZE.split("x"))


@pytest.fixture(scope="module")
def server():
    process = engine.SglangPlanner()
    try:
        process.wait()
        yield process
    finally:
        process.stop()


def request(**changes):
    return PlanRequest(PROMPT, HEIGHT, WIDTH, **changes)


def plan(server, model, asked, **more):
    return plan_remotely(model.settings, asked, server.url, seconds=1800.0, **more)


def test_the_likeliest_plan_is_token_for_token_ours(server, model, report):
    asked = request(temperature=0.0)
    there, here = plan(server, model, asked).plan, model.make_plan(asked)
    assert torch.equal(there.preview_token_ids, here.preview_token_ids)
    assert torch.equal(there.prior_token_ids_d32, here.prior_token_ids_d32)
    count = there.preview_token_ids.numel() + there.prior_token_ids_d32.numel()
    report(f"sglang-planner: greedy and in float32, its {count} tokens are ours, one by one")


def test_plans_of_the_server_drawn_here_read_as_asked(server, model, reader, report):
    begin = time.monotonic()
    made = plan(server, model, request(seed=SEEDS[0], count=len(SEEDS)), parallel=1)
    seconds = (time.monotonic() - begin) / len(SEEDS)
    drawn = to_pil(model.decode(model.denoise(made.plan, steps=STEPS, seed=1)))
    right = sum(reads(image, reader) for image in drawn)
    report(f"sglang-planner: a plan took {seconds:.1f} s; drawn here, OCR reads the word in {right} of {len(SEEDS)}")
    assert right >= len(SEEDS) / 2
    assert "--enable-deterministic-inference" in made.report


def test_a_plan_that_is_given_up_is_dropped(server, model, report):
    cancelled = threading.Event()

    def tell(text):
        if "planned at" in text:  # the request is about to be sent
            threading.Timer(3.0, cancelled.set).start()

    with pytest.raises(CancelledError):
        plan(server, model, request(), tell=tell, cancelled=cancelled.is_set)
    end = time.monotonic() + 60
    while "disconnected from the client side" not in server.log.read_text(errors="replace"):
        assert time.monotonic() < end
        time.sleep(0.5)
    report("sglang-planner: drops a plan whose client went away")
