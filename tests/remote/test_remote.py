"""The remote client against contract servers on loopback: every protocol as documented, and every way to break it."""

import io
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError
from comfyui_glm_image.pipeline.remote import CancelledError, Job, generate, pool
from comfyui_glm_image.pipeline.remote import hosted as hosted_api
from comfyui_glm_image.pipeline.remote.images import to_png
from comfyui_glm_image.pipeline.remote.request import ImageRequest, with_texts
from comfyui_glm_image.tests.remote.contract import KEY, colour
from PIL import Image

SIZE = {"width": 96, "height": 64}
HOSTED = {"width": 1280, "height": 1280, "engine": "zai"}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Keys of the environment are the test's own, and tasks are asked for often."""
    monkeypatch.setattr(hosted_api, "POLL_SECONDS", 0.05)
    for name in ("ZAI_API_KEY", "ZHIPUAI_API_KEY", "BIGMODEL_API_KEY", "GLM_IMAGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hosted(serve, monkeypatch):
    """fault -> a contract server of the hosted API, whose key is set."""

    def start(fault=None, **options):
        server = serve("zai", fault, **options)
        monkeypatch.setenv("GLM_IMAGE_API_KEY", KEY)
        monkeypatch.setenv("GLM_IMAGE_API_KEY_SERVERS", server.url)
        return server

    return start


def of(image):
    """The one colour of an image."""
    ((_, value),) = image.getcolors()
    return value


# Protocols -----------------------------------------------------------------------------------------------------------

ENGINES = [("vllm-omni", "auto"), ("vllm-omni", "vllm-omni-chat"), ("sglang", "auto")]


@pytest.mark.parametrize(("engine", "chosen"), ENGINES)
def test_text_to_image_takes_the_form_of_the_engine(serve, engine, chosen):
    server = serve(engine)
    (image,) = generate(Job("a sign 'OPEN'", server.url, engine=chosen, seed=300, **SIZE)).images
    assert (image.size, image.mode, of(image)) == ((96, 64), "RGB", colour(300))
    ((path, _, references),) = server.requests
    assert not references
    assert path == ("/v1/chat/completions" if chosen == "vllm-omni-chat" else "/v1/images/generations")


EDITS = [("vllm-omni", "auto", 1), ("vllm-omni", "vllm-omni-chat", 1), ("sglang", "auto", 1), ("sglang", "auto", 3)]


@pytest.mark.parametrize(("engine", "chosen", "count"), EDITS)
def test_references_arrive_whole_and_in_order(serve, engine, chosen, count):
    server = serve(engine, version="0.5.20" if engine == "sglang" else "")
    references = [Image.new("RGB", (40 + i, 30), colour(i)) for i in range(count)]
    generate(Job("make it blue", server.url, engine=chosen, references=references, **SIZE))
    ((_, _, received),) = server.requests
    assert [(image.size, of(image.convert("RGB"))) for image in received] == [
        (image.size, of(image)) for image in references
    ]


def test_references_are_sent_without_their_metadata():
    image = Image.new("RGBA", (8, 8))
    image.info["comment"] = image.info["icc_profile"] = b"secret place"
    assert b"secret" not in to_png(image)


def test_a_reference_larger_than_is_of_use_is_shrunk():
    with Image.open(io.BytesIO(to_png(Image.new("L", (8192, 64))))) as sent:
        assert (sent.size, sent.mode) == ((4096, 32), "RGB")


def test_a_base_address_with_v1_is_understood(serve):
    server = serve("sglang")
    generate(Job("x", server.url + "/v1/", **SIZE))
    assert len(server.requests) == 1


@pytest.mark.parametrize("engine", ["zai", "zai-async"])
def test_the_hosted_api_is_asked_as_documented_and_its_image_fetched(hosted, engine):
    server = hosted()
    told = []
    generated = generate(Job("a cat", server.url, seed=1, steps=3, **{**HOSTED, "engine": engine}), told.append)
    assert of(generated.images[0]) == colour(7)
    ((_, fields, _),) = server.requests
    assert fields == {"model": "glm-image", "prompt": "a cat", "size": "1280x1280", "quality": "hd"}
    assert f"{engine} takes no steps, seed: ignored" in generated.report
    assert told == [f"1 of 1280x1280 at {server.url} ({engine}): about $0.015, the limit is $0.100"]
    assert "cost about $0.015" in generated.report
    assert KEY not in generated.report


def test_an_asynchronous_task_survives_a_failed_poll(hosted):
    server = hosted("poll_fails_once")
    assert generate(Job("a cat", server.url, **{**HOSTED, "engine": "zai-async"})).images
    assert len(server.requests) == 1


def test_an_asynchronous_task_that_fails_is_said(hosted):
    with pytest.raises(GlmImageError, match="ended the task as FAIL"):
        generate(Job("a cat", hosted("task_fails").url, **{**HOSTED, "engine": "zai-async"}))


def test_a_batch_has_a_seed_each_in_order(serve):
    server = serve("vllm-omni")
    seen = []
    job = Job("x", server.url, count=6, seed=250, parallel=3, **SIZE)
    generated = generate(job, progress=lambda done, total: seen.append((done, total)))
    assert [of(image) for image in generated.images] == [colour(250 + k) for k in range(6)]
    assert seen[-1] == (6, 6)
    assert len(server.requests) == 6


def test_requests_in_flight_stay_below_the_limit(serve):
    server = serve("sglang", seconds=0.05)
    at_once, most = [], []
    lock = threading.Lock()

    def begin(count):
        with lock:
            at_once.append(1)
            most.append(len(at_once))
        time.sleep(0.03)
        with lock:
            at_once.pop()

    server.on_draw = begin
    generate(Job("x", server.url, count=9, parallel=3, **SIZE))
    assert max(most) <= 3


# What is refused before anything is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"width": 100}, "width 100 is not a multiple of 32; use 96 or 128"),
        ({"seed": 2**32}, "seed 4294967296 is out of range"),
        ({"steps": 0}, "steps 0 is out of range"),
        ({"guidance": float("nan")}, "guidance nan is out of range"),
        ({"count": 65}, "65 images; use 1 to 64"),
        ({"parallel": 0}, "0 requests at once"),
        ({"seconds": float("nan")}, "a timeout of nan s"),
        ({"engine": "zai", "max_usd": float("nan")}, "more than the limit"),
        ({"engine": "comfy"}, "engine 'comfy' is not known; use auto, vllm-omni"),
        ({"server": ""}, "no server is given"),
        ({"references": [Image.new("RGB", (8, 8))] * 9}, "9 reference images; at most 8"),
        ({"engine": "zai", "max_usd": 0.01}, "1 images cost about \\$0.015, more than the limit of \\$0.010"),
    ],
)
def test_a_wrong_job_is_one_sentence_and_sends_nothing(serve, changes, message):
    server = serve("vllm-omni")
    with pytest.raises(GlmImageError, match=message):
        generate(Job(**{"prompt": "x", "server": server.url, **SIZE, **changes}))
    assert not server.requests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 512, "height": 512}, "the hosted API draws no 512x512; use 1280x1280"),
        ({"references": [Image.new("RGB", (8, 8))]}, "takes no reference images"),
    ],
)
def test_what_the_hosted_api_cannot_do_is_not_sent(hosted, changes, message):
    server = hosted()
    with pytest.raises(InputError, match=message):
        generate(Job("x", server.url, **{**HOSTED, **changes}))
    assert not server.requests


def test_texts_are_quoted_into_the_prompt_once():
    prompt, added = with_texts("A shop 'OPEN'", ["OPEN", "24h", 'say "hi"'])
    assert added == ["24h", 'say "hi"']
    assert prompt == 'A shop \'OPEN\' It shows the texts "24h", “say "hi"”.'
    assert with_texts(prompt, ["OPEN", "24h"]) == (prompt, [])
    with pytest.raises(InputError, match="every kind of quote"):
        with_texts("A", ['"“「'])


def test_a_request_does_not_show_its_references_when_printed():
    assert "PNG" not in repr(ImageRequest("x", 64, 64, references=(b"PNG",)))


# Broken, slow and lying servers --------------------------------------------------------------------------------------

BROKEN = {
    "400": "answered 400: height is too large for this server",
    "500": "answered 500: CUDA out of memory",
    "plain 500": "answered 500: Internal Server Error",
    "503": "answered 503: Diffusion engine not initialized",
    "half": "sent [0-9,]+ of [0-9,]+ bytes and closed the connection",
    "html": "answered with text/html that is not JSON; is this the address of an engine's API",
    "bad base64": "sent an image whose base64 is broken",
    "not an image": "bytes that are no readable PNG, JPEG, WEBP image",
    "cut image": "bytes that are no readable PNG, JPEG, WEBP image",
    "bomb": "sent an image that is too large to unpack",
    "other size": "sent an image of 48x64 px where 96x64 was asked for",
    "announced gigabyte": "announces 1,073,741,824 bytes; at most",
    "streamed gigabyte": "sends more than [0-9,]+ bytes; given up",
}


@pytest.fixture
def impatient(monkeypatch):
    """Failing servers rest shortly, so that tests of failures are fast."""
    monkeypatch.setattr(pool, "BACK_OFF", 0.02)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_answer_is_one_clear_error(serve, impatient, fault):
    server = serve("vllm-omni", fault)
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match=BROKEN[fault]) as error:
        generate(Job("x", server.url, **SIZE))
    assert str(error.value).startswith(server.url)
    assert "\n" not in str(error.value)
    assert server.sent < 128 << 20  # of 3 GB in three tries
    assert time.monotonic() - begin < 10


CHAT_BROKEN = {
    "words": "answered with words instead of an image: Image generation completed but no images",
    "withheld chat": "withheld the image: its content filter stopped it",
    "bad base64": "sent an image whose base64 is broken",
    "not an image": "bytes that are no readable PNG, JPEG, WEBP image",
    "streamed gigabyte": "sends more than [0-9,]+ bytes; given up",
}


@pytest.mark.parametrize("fault", CHAT_BROKEN)
def test_the_chat_form_is_checked_alike(serve, impatient, fault):
    with pytest.raises(GlmImageError, match=CHAT_BROKEN[fault]):
        generate(Job("x", serve("vllm-omni", fault).url, engine="vllm-omni-chat", **SIZE))


HOSTED_FAULTS = {
    "400": "answered 400: Parameter size is invalid",
    "500": "answered 500: CUDA out of memory",
    "broke": "answered 429: Insufficient balance",
    "withheld": "withheld the image, its content filter says: System detected potentially unsafe",
    "withheld quietly": "withheld the image: its content filter objects to the image",
    "half": "closed the connection",
}


@pytest.mark.parametrize("fault", HOSTED_FAULTS)
def test_a_hosted_request_that_may_have_cost_something_is_sent_once(hosted, impatient, fault):
    server = hosted(fault)
    with pytest.raises(GlmImageError, match=HOSTED_FAULTS[fault]):
        generate(Job("x", server.url, **HOSTED))
    assert len(server.requests) == 1


def test_a_hosted_request_turned_away_is_sent_again_after_the_time_asked_for(hosted):
    server = hosted("busy")
    begin = time.monotonic()
    assert generate(Job("x", server.url, **HOSTED)).images
    assert len(server.requests) == 2
    assert time.monotonic() - begin >= 1


def test_turns_at_a_hosted_account_are_waited_for_however_often_they_are_refused(hosted, impatient):
    server = hosted("one at a time")
    generated = generate(Job("x", server.url, count=6, parallel=6, **HOSTED))
    assert len(generated.images) == 6
    assert len(server.requests) > 6


def test_waiting_for_a_turn_ends_with_the_timeout(hosted, impatient):
    server = hosted("one at a time")
    with server.turn, pytest.raises(GlmImageError, match="answered 429: Rate limit reached"):
        generate(Job("x", server.url, seconds=0.5, **HOSTED))


@pytest.mark.parametrize("engine", ["vllm-omni", "sglang", "zai"])
@pytest.mark.parametrize("fault", ["always busy", "busy for a minute"])
def test_a_server_that_always_answers_429_ends_with_the_timeout_whatever_it_asks_for(serve, hosted, engine, fault):
    server = hosted(fault) if engine == "zai" else serve(engine, fault)
    size = HOSTED if engine == "zai" else SIZE
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="answered 429: Rate limit reached"):
        generate(Job("x", server.url, count=6, parallel=2, seconds=1.0, keep_going=True, **size))
    assert time.monotonic() - begin < 20  # a minute for one image, were the server obeyed


def test_an_empty_account_ends_the_batch_even_when_others_may_go_on(hosted):
    server = hosted("broke")
    with pytest.raises(GlmImageError, match="Insufficient balance"):
        generate(Job("x", server.url, count=6, parallel=1, keep_going=True, **HOSTED))
    assert len(server.requests) == 1


def test_an_account_that_runs_empty_keeps_what_was_paid(hosted):
    server = hosted()
    server.on_draw = lambda count: setattr(server, "fault", "broke" if count > 2 else None)
    generated = generate(Job("x", server.url, count=6, parallel=1, keep_going=True, **HOSTED))
    assert len(generated.images) == 2
    assert generated.report.count("Insufficient balance") == 4
    assert len(server.requests) == 3


def test_a_hanging_server_is_left_in_time_and_the_connection_closed(serve):
    server = serve("vllm-omni", "hang")
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="no image within 0.4 s"):
        generate(Job("x", server.url, seconds=0.4, **SIZE))
    assert time.monotonic() - begin < 5
    wait_until(lambda: server.closed)


def test_a_server_that_drips_bytes_is_left_in_time(serve):
    with pytest.raises(GlmImageError, match="no image within 0.5 s"):
        generate(Job("x", serve("sglang", "drip").url, seconds=0.5, **SIZE))


@pytest.mark.parametrize("engine", ["vllm-omni", "sglang"])
def test_cancelling_closes_every_connection_within_a_second(serve, engine):
    server = serve(engine, "hang")
    cancelled = threading.Event()
    times = []

    def cancel():
        wait_until(lambda: len(server.requests) == 3)
        times.append(time.monotonic())
        cancelled.set()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(CancelledError):
        generate(Job("x", server.url, count=3, parallel=3, **SIZE), cancelled=cancelled.is_set)
    assert time.monotonic() - times[0] < 1
    wait_until(lambda: len(server.closed) == 3)
    assert max(server.closed) - times[0] < 1


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_images_that_arrived_are_kept_when_asked(hosted):
    server = hosted()
    server.on_draw = lambda count: setattr(server, "fault", "withheld" if count == 2 else None)
    generated = generate(Job("x", server.url, count=3, parallel=1, keep_going=True, **HOSTED))
    assert len(generated.images) == 2
    assert "2 of 3 images" in generated.report
    assert "image 2 failed" in generated.report


def test_an_error_says_how_many_had_arrived(serve):
    server = serve("vllm-omni")
    server.on_draw = lambda count: setattr(server, "fault", "400" if count == 3 else None)
    with pytest.raises(GlmImageError, match=r"height is too large for this server \(2 of 4 images had arrived\)"):
        generate(Job("x", server.url, count=4, parallel=1, **SIZE))


def test_an_unknown_server_is_not_guessed_at(serve):
    with pytest.raises(GlmImageError, match="answered 404: Not Found"):
        generate(Job("x", serve("zai").url, **SIZE))


def test_a_server_that_is_not_there_is_said_at_once():
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="does not answer; is the server running and the port right"):
        generate(Job("x", f"http://127.0.0.1:{free_port()}", **SIZE))
    assert time.monotonic() - begin < 3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_key_is_redacted_though_characters_that_do_not_show_part_it():
    from comfyui_glm_image.pipeline.remote.api_keys import Key
    from comfyui_glm_image.pipeline.remote.http import _target
    from comfyui_glm_image.pipeline.remote.responses import redact

    key = Key("secret-key", "a test")
    assert redact("bad secret-\u200bkey\n\x00 here", key) == "bad (key) here"
    location = SimpleNamespace(getheader=lambda name: "http://secret-\x00key.example.com/path")
    assert _target(location, key) == " to http://(key).example.com"


def test_the_node_offers_the_engines_there_are():
    from comfyui_glm_image.pipeline.remote import ENGINES
    from comfyui_glm_image.pipeline.remote.limits import ENGINE_NAMES

    assert tuple(ENGINES) == ENGINE_NAMES
