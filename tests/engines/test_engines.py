"""The client against the engines themselves: text to image, edits, errors, a cancelled image, killed workers, a pool.

Own engines run on a CPU with the small checkpoint. With ENGINE_URL the same runs on a server of yours; ENGINE_SIZE,
ENGINE_STEPS and ENGINE_MODEL (a folder with the checkpoint's settings) say how.
"""

import threading
import time

import numpy as np
import pytest
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError
from comfyui_glm_image.pipeline.images import to_pil
from comfyui_glm_image.pipeline.planning.remote_plan import given_plans
from comfyui_glm_image.pipeline.remote import CancelledError, Job, generate
from comfyui_glm_image.pipeline.remote.engines import Sglang
from comfyui_glm_image.pipeline.remote.errors import RemoteError, RepeatableFailureError
from comfyui_glm_image.pipeline.remote.pool import Pool
from comfyui_glm_image.pipeline.remote.request import ImageRequest
from comfyui_glm_image.pipeline.remote.server import Server
from comfyui_glm_image.tests.engines.conftest import PROMPT, SEEDS, SIZE, STEPS, WORD, reads
from comfyui_glm_image.tests.remote.request_log import log_requests, recovery
from PIL import Image

WIDTH, HEIGHT = map(int, SIZE.split("x"))
POOL_IMAGES, KILL_AFTER = 200, 60
own_engines = pytest.mark.own_engines


def ask(served, planner, **changes):
    settings = {"width": WIDTH, "height": HEIGHT, "steps": STEPS, "seed": 3, "seconds": 1800.0, "planner": planner}
    return generate(Job(PROMPT, served.url, **settings | changes))


def pixels(generated):
    return np.asarray(generated.images[0]).astype(int)


def test_the_word_is_read_back_and_a_seed_repeats(served, planner, reader, report):
    begin = time.monotonic()
    drawn = ask(served, planner, seed=SEEDS[0], count=len(SEEDS), parallel=1)
    seconds = (time.monotonic() - begin) / len(SEEDS)
    right = sum(reads(image, reader) for image in drawn.images)
    assert drawn.formats == ["PNG"] * len(SEEDS)
    (engine,) = drawn.engines
    report(f"{engine}: {SIZE} in {STEPS} steps took {seconds:.1f} s; OCR reads {WORD} in {right} of {len(SEEDS)}")
    assert right >= len(SEEDS) / 2
    again = ask(served, planner, seed=SEEDS[0])
    assert (pixels(again) == pixels(drawn)).all()
    assert len({image.tobytes() for image in drawn.images}) == len(SEEDS)
    report(f"{engine}: the same seed gives the same pixels, another seed others; files are PNG")


def test_steps_and_guidance_arrive(served, planner, report):
    few = ask(served, planner, steps=2)
    for changes in ({"steps": 3}, {"steps": 2, "guidance": 4.0}):
        assert (pixels(ask(served, planner, **changes)) != pixels(few)).any(), changes
    report(f"{few.engines[0]}: other steps and another guidance give other pixels")


def test_both_forms_of_vllm_omni_mean_the_same(running, planner, report):
    served = vllm_omni_of(running, planner)
    images = ask(served, planner, steps=2)
    chat = ask(served, planner, steps=2, engine="vllm-omni-chat")
    assert (pixels(images) == pixels(chat)).all()
    report("vllm-omni: images form and chat form give the same pixels")


@own_engines
def test_a_plan_made_here_is_drawn_as_it_is_here(running, planner, model, report):
    """Levels of 256 apart: the engine rounds its latents and its image elsewhere."""
    plan = model.plan(PROMPT, height=HEIGHT, width=WIDTH, seed=5)
    here = np.asarray(to_pil(model.decode(model.denoise(plan, steps=STEPS, seed=7)))[0]).astype(int)
    there = ask(running["vllm-omni"], planner, seed=7, plans=given_plans(plan))
    apart = abs(pixels(there) - here)
    report(
        f"vllm-omni: draws a plan of ours as we do: {apart.max()} levels of 256 apart at most, {apart.mean():.2f} mean"
    )
    assert apart.max() <= 8 and apart.mean() < 0.5


def test_an_edit_works_or_is_refused(served, planner, report):
    reference = Image.new("RGB", (WIDTH, HEIGHT), (200, 60, 60))
    try:
        edited = ask(served, planner, steps=2, references=[reference])
    except InputError as error:
        report(f"{served.name}: an edit is refused before anything is sent: {error}")
        return
    assert edited.images[0].size == (WIDTH, HEIGHT)
    again = ask(served, planner, steps=2, references=[reference])
    assert (pixels(again) == pixels(edited)).all()
    report(f"{edited.engines[0]}: an edit from one reference works and repeats")


@own_engines
def test_an_edit_that_sglang_fails_on_is_sent_once_and_explained(running, planner, report, monkeypatch):
    """As a later release would be met, of which it is not known yet."""
    monkeypatch.setattr(Sglang, "broken_edits", ((9, 9, 9), (9, 9, 9)))
    with pytest.raises(RepeatableFailureError, match="answered 500: Internal Server Error. SGLang 0.5.23 fails on"):
        ask(running["sglang"], planner, references=[Image.new("RGB", (WIDTH, HEIGHT))])
    report("sglang: the real answer to an edit is 500 without a reason; it is explained and not repeated")


@own_engines
def test_two_references_are_refused_and_vllm_omni_would_refuse_them_too(running, planner, report, monkeypatch):
    references = [Image.new("RGB", (WIDTH, HEIGHT))] * 2
    with pytest.raises(InputError, match="exactly one reference image"):
        ask(running["vllm-omni"], planner, references=references)
    monkeypatch.setattr("comfyui_glm_image.pipeline.remote.engines.VllmOmni.check", lambda self, request: None)
    with pytest.raises(GlmImageError, match="At most 1 image") as error:
        ask(running["vllm-omni"], planner, references=references)
    report(f"vllm-omni: two references: {error.value}")


@own_engines
def test_a_plan_that_does_not_fit_is_told_at_once(running, planner, report):
    """The deploy file of the tests allows 520 tokens, which 1024x1024 exceeds."""
    begin = time.monotonic()
    with pytest.raises(RepeatableFailureError, match="produced no valid inputs") as error:
        ask(running["vllm-omni"], planner, width=1024, height=1024)
    report(f"vllm-omni: a plan that does not fit, after {time.monotonic() - begin:.1f} s: {error.value}")


def test_a_cancelled_image_is_finished_and_the_next_waits(served, planner, report):
    ask(served, planner, steps=2)  # how long it takes is known from here on
    cancelled, told = threading.Event(), []
    threading.Timer(1.0, cancelled.set).start()
    begin = time.monotonic()
    settings = {"width": WIDTH, "height": HEIGHT, "steps": STEPS, "seed": 5, "planner": planner}
    with pytest.raises(CancelledError):
        generate(Job(PROMPT, served.url, **settings), told.append, cancelled=cancelled.is_set)
    stopped = time.monotonic() - begin
    assert stopped < 3
    assert "finishes what it has begun" in told[-1]
    server = Server(served.url)
    server.connect()
    while server.occupied:
        server.watch_abandoned(600, lambda: False)
        time.sleep(0.1)
    free = time.monotonic() - begin
    ask(served, planner, steps=2)
    report(f"{server.engine.name}: cancelled after {stopped:.1f} s, the next image was sent after {free:.1f} s")


@own_engines
def test_two_hundred_images_over_both_engines_though_one_dies(running, planner, report, monkeypatch):
    """vLLM-Omni loses the process of its decoder after some images; every image comes once all the same."""
    dying = running["vllm-omni"]
    log, killed = log_requests(monkeypatch), []

    def progress(done, total):
        if done >= KILL_AFTER and not killed:
            dying.process.kill_worker()
            killed.append(time.monotonic())

    pool = Pool([Server(served.url) for served in running.values()], parallel=4, seconds=600.0)
    pool.connect()
    requests = [ImageRequest(PROMPT, 64, 64, seed, 1, planner=planner) for seed in range(POOL_IMAGES)]
    batch = pool.run(requests, progress=progress)
    assert sorted(batch.images) == list(range(POOL_IMAGES)) and not batch.errors
    colours = {received.image.tobytes() for received in batch.images.values()}
    assert len(colours) == POOL_IMAGES  # no seed was answered with the image of another
    noticed, again = recovery(log, dying.url)
    shares = ", ".join(f"{server.engine.name} {server.completed}" for server in pool.servers)
    report(
        f"{POOL_IMAGES} images over both engines in {batch.seconds:.0f} s ({shares}), the decoder of vllm-omni killed "
        f"after {KILL_AFTER}: {len(again)} images cut, noticed {noticed - killed[0]:.1f} s after the kill, the last of "
        f"them sent again after {max(again) - killed[0]:.1f} s; {batch.retries} failed attempts"
    )
    assert noticed - killed[0] < 10


@own_engines
def test_a_dead_worker_of_sglang_is_noticed(running, planner, report):
    """The last test: no engine works after it."""
    dying = running["sglang"]
    begin = []

    def kill():
        begin.append(time.monotonic())
        dying.process.kill_worker()

    threading.Timer(2.0, kill).start()
    with pytest.raises(RemoteError) as error:
        ask(dying, planner, steps=200)
    seconds = time.monotonic() - begin[0]
    assert seconds < 60
    report(f"sglang: its worker killed, an error {seconds:.1f} s later: {error.value}")


def vllm_omni_of(running, planner):
    """The server that is vLLM-Omni; at ENGINE_URL it may be another engine."""
    for served in running.values():
        server = Server(served.url)
        server.connect()
        if server.engine.name == "vllm-omni":
            return served
    pytest.skip("the server at ENGINE_URL is no vLLM-Omni")
