"""What the real engines do that their documentation does not tell, seen on vLLM-Omni 0.30.0 and SGLang 0.5.23."""

import threading
import time

import pytest
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError
from comfyui_glm_image.pipeline.remote import CancelledError, Job, generate, pool
from comfyui_glm_image.tests.remote.contract import colour
from comfyui_glm_image.tests.remote.protocols import Effect
from PIL import Image

SIZE = {"width": 96, "height": 64}
RED = Image.new("RGB", (40, 30), (200, 30, 30))
FORMS = [("vllm-omni", "auto", []), ("vllm-omni", "vllm-omni-chat", []), ("sglang", "auto", [])]
EDITS = [("vllm-omni", "auto", [RED]), ("vllm-omni", "vllm-omni-chat", [RED]), ("sglang", "auto", [RED])]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "BACK_OFF", 0.05)
    monkeypatch.setattr(pool, "HEALTH_INTERVAL", 0.1)
    monkeypatch.setattr(pool, "WARM_UP_INTERVAL", 0.1)


def editing(engine):
    """A release that edits."""
    return {"version": "0.5.20"} if engine == "sglang" else {}


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(("engine", "chosen", "references"), [*FORMS, *EDITS])
def test_every_form_brings_png_and_every_setting_to_both_stages(serve, engine, chosen, references):
    server = serve(engine, **editing(engine))
    settings = {"seed": 300, "steps": 7, "guidance": 2.5}
    generated = generate(Job("x", server.url, engine=chosen, references=references, **settings, **SIZE))
    assert server.effects == [Effect(96, 64, 300, 300, 7, 2.5)]
    assert generated.formats == ["PNG"]
    assert generated.images[0].getpixel((5, 5)) == colour(300)


@pytest.mark.parametrize(("engine", "chosen", "references"), [*FORMS, *EDITS])
def test_what_is_left_open_means_the_same_on_every_engine(serve, engine, chosen, references):
    server = serve(engine, **editing(engine))
    generated = generate(Job("x", server.url, engine=chosen, references=references, **SIZE))
    (seed,) = generated.seeds
    assert server.effects == [Effect(96, 64, seed, seed, 50, 1.5)]


def test_a_jpeg_is_said(serve):
    generated = generate(Job("x", serve("sglang", "jpeg").url, count=2, **SIZE))
    assert generated.formats == ["JPEG", "JPEG"]
    assert "2 came as JPEG, compressed by the server, not as PNG" in generated.report


def test_vllm_omni_edits_by_its_chat_form_from_one_reference(serve):
    server = serve()
    report = generate(Job("x", server.url, references=[RED], **SIZE)).report
    assert [path for path, _, _ in server.requests] == ["/v1/chat/completions"]
    assert "vllm-omni: the reference is shown to the planner only" in report
    with pytest.raises(InputError, match="edits from exactly one reference image, 2 were given; leave one"):
        generate(Job("x", server.url, references=[RED, RED], **SIZE))
    assert len(server.requests) == 1


@pytest.mark.parametrize("version", ["0.5.22", "0.5.23.post1"])
def test_an_sglang_that_is_known_to_fail_on_edits_is_sent_none(serve, version):
    server = serve("sglang", version=version)
    with pytest.raises(InputError, match=f"SGLang {version} fails on every edit: .* Serve with 0.5.20 or older"):
        generate(Job("x", server.url, references=[RED], **SIZE))
    assert not server.requests


def test_a_later_sglang_is_tried_once_and_its_failure_explained(serve):
    server = serve("sglang", version="0.5.30")
    with pytest.raises(GlmImageError, match="answered 500: Internal Server Error. SGLang 0.5.30 fails on every edit"):
        generate(Job("x", server.url, references=[RED], **SIZE))
    assert len(server.requests) == 1


def test_an_edit_goes_to_the_server_that_can_do_it(serve):
    able, unable = serve(), serve("sglang")
    generated = generate(Job("x", f"{unable.url} {able.url}", references=[RED], count=3, **SIZE))
    assert (len(able.requests), len(unable.requests)) == (3, 0)
    assert f"{unable.url} (sglang) was left out: SGLang 0.5.23 fails on every edit" in generated.report


def test_a_dead_engine_is_noticed_and_another_takes_over(serve):
    """Its requests are never answered, its list of models is as ever: only the health page tells."""
    dying, well = serve(), serve()
    dying.on_draw = lambda count: dying.engine_died.set()
    begin = time.monotonic()
    generated = generate(Job("x", f"{dying.url} {well.url}", count=4, seed=0, seconds=60, **SIZE))
    assert time.monotonic() - begin < 5
    assert [image.getpixel((0, 0)) for image in generated.images] == [colour(k) for k in range(4)]
    assert f"{dying.url} (vllm-omni): 0" in generated.report


def test_a_dead_engine_without_another_is_an_error_within_seconds(serve):
    server = serve()
    server.on_draw = lambda count: server.engine_died.set()
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="answered 503"):
        generate(Job("x", server.url, seconds=60, **SIZE))
    assert time.monotonic() - begin < 5


def test_a_server_that_refuses_connections_is_not_waited_for(serve):
    server = serve(fault="hang")

    def close_door():
        wait_until(lambda: server.requests)
        server.shutdown()
        server.server_close()

    threading.Thread(target=close_door, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="does not answer"):
        generate(Job("x", server.url, seconds=60, **SIZE))
    assert time.monotonic() - begin < 5


def test_a_server_that_warms_up_is_waited_for(serve):
    server = serve("sglang")
    server.ready.clear()
    threading.Timer(0.5, server.ready.set).start()
    told = []
    generate(Job("x", server.url, **SIZE), told.append)
    assert told[0] == f"{server.url} is warming up, 0 s so far"
    assert len(server.requests) == 1


def test_warming_up_ends_with_the_timeout(serve):
    server = serve("sglang")
    server.ready.clear()
    with pytest.raises(GlmImageError, match="is warming up"):
        generate(Job("x", server.url, seconds=0.3, **SIZE))


def test_a_ready_server_does_not_wait_for_one_that_warms_up(serve):
    cold, warm = serve("sglang"), serve()
    cold.ready.clear()
    generate(Job("x", f"{cold.url} {warm.url}", count=3, **SIZE))
    assert (len(cold.requests), len(warm.requests)) == (0, 3)


@pytest.mark.parametrize("chosen", ["vllm-omni", "vllm-omni-chat"])
def test_a_plan_that_ends_early_is_not_asked_for_again(serve, chosen):
    server = serve()
    server.early_seeds = {5}
    reason = "answered 500: Stage-0 produced no valid inputs for diffusion stage-1: the plan of seed 5 ended early"
    with pytest.raises(GlmImageError, match=reason):
        generate(Job("x", server.url, engine=chosen, seed=5, **SIZE))
    assert len(server.requests) == 1


def test_a_size_beyond_the_engine_s_plan_is_not_sent(serve):
    server = serve()
    with pytest.raises(InputError, match="2048x2080 needs a plan of 4401 tokens and vLLM-Omni stops at 4353"):
        generate(Job("x", server.url, width=2048, height=2080))
    assert not server.requests


def cancel_one(server, told):
    """Start an image and give it up while the server works on it."""
    cancelled = threading.Event()
    server.on_draw = lambda count: threading.Timer(0.1, cancelled.set).start()
    with pytest.raises(CancelledError):
        generate(Job("x", server.url, **SIZE), told.append, cancelled=cancelled.is_set)
    server.on_draw = lambda count: None


@pytest.mark.parametrize("engine", ["vllm-omni", "sglang"])
def test_the_next_image_waits_for_one_that_was_cancelled(serve, engine):
    """SGLang tells when it is done; of vLLM-Omni the time of its last image is known."""
    server = serve(engine, seconds=0.8)
    generate(Job("x", server.url, **SIZE))
    told, finished = [], []
    cancel_one(server, told)
    assert told[-1] == f"cancelled; {server.url} ({engine}) finishes what it has begun; the next image waits for it"
    server.on_draw = lambda count: finished.append(server.finished)
    generate(Job("x", server.url, **SIZE), told.append)
    assert finished == [2]
    assert "still works on an image that was given up" in told[-1]


def test_another_server_does_the_work_while_one_finishes_a_cancelled_image(serve):
    busy, free = serve("sglang", seconds=1.5), serve("sglang")
    cancel_one(busy, [])
    generate(Job("x", f"{busy.url} {free.url}", count=3, parallel=3, **SIZE))
    assert (len(busy.requests), len(free.requests)) == (1, 3)
    assert busy.finished == 0
