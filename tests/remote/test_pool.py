"""Several servers: health, choice, retries, and a server that dies in the middle of two hundred images."""

import statistics
import time

import pytest
from comfyui_glm_image.pipeline.errors import GlmImageError
from comfyui_glm_image.pipeline.remote import Job, generate, pool
from comfyui_glm_image.pipeline.remote.errors import BusyError, ServerFailedError, UnreachableError
from comfyui_glm_image.pipeline.remote.pool import Pool
from comfyui_glm_image.pipeline.remote.request import ImageRequest
from comfyui_glm_image.pipeline.remote.server import Server, read_servers
from comfyui_glm_image.tests.remote.contract import colour
from comfyui_glm_image.tests.remote.request_log import log_requests, recovery

SIZE = {"width": 64, "height": 64}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pool, "BACK_OFF", 0.05)


def seeds_of(server):
    return [fields["seed"] for _, fields, _ in server.requests]


def of(image):
    ((_, value),) = image.getcolors()
    return value


def run(servers, count, **options):
    requests = [ImageRequest("x", 64, 64, seed=k) for k in range(count)]
    crowd = Pool([Server(server.url) for server in servers], **options)
    crowd.connect()
    return crowd, crowd.run(requests)


def test_two_hundred_images_arrive_once_each_though_one_of_three_servers_dies(serve):
    """The dying server cuts what it had in hand; others draw that again; nothing is lost, doubled or mixed up."""
    servers = [serve(seconds=0.01) for _ in range(3)]
    dying = servers[1]
    dying.on_draw = lambda count: dying.die() if count == 30 else None
    crowd, batch = run(servers, 200, parallel=12)
    assert [of(received.image) for received in batch.in_order()] == [colour(k) for k in range(200)]
    assert not batch.errors
    completed = [server.completed for server in crowd.servers]
    assert sum(completed) == 200
    assert completed[1] < 30 <= min(completed[0], completed[2])
    cut = set(range(200)) - set(seeds_of(servers[0])) - set(seeds_of(servers[2]))
    assert len(cut) == completed[1]
    assert 1 <= batch.retries <= 60
    print(
        f"200 images, 3 servers of 10 ms, one dead after 30 requests: {batch.seconds:.2f} s, "
        f"{200 / batch.seconds:.0f} images/s, shares {completed}, {batch.retries} failed attempts"
    )


def test_two_hundred_images_over_two_engines_though_one_dies_without_a_word(serve, monkeypatch):
    """As vLLM-Omni does when its decoder dies: it answers nothing more, and only its health page tells."""
    servers = [serve("vllm-omni", seconds=0.02), serve("sglang", seconds=0.02)]
    log, died = log_requests(monkeypatch), []

    def count_down(count):
        if count == 60:
            servers[0].engine_died.set()
            died.append(time.monotonic())

    servers[0].on_draw = count_down
    crowd, batch = run(servers, 200, parallel=4)
    assert [of(received.image) for received in batch.in_order()] == [colour(k) for k in range(200)]
    noticed, again = recovery(log, servers[0].url)
    assert noticed - died[0] < 5
    print(
        f"200 images, 2 engines of 20 ms, one dead after 60: {len(again)} images cut, noticed after "
        f"{noticed - died[0]:.2f} s, the last of them sent again after {max(again) - died[0]:.2f} s, "
        f"{batch.seconds:.1f} s in all, shares {[server.completed for server in crowd.servers]}"
    )


def test_the_load_is_spread_by_speed(serve):
    fast, slow = serve(seconds=0.01), serve(seconds=0.2)
    crowd, _ = run([fast, slow], 24, parallel=4)
    assert crowd.servers[0].completed > 2 * crowd.servers[1].completed > 0


def test_equal_servers_get_equal_shares(serve):
    crowd, _ = run([serve(seconds=0.02) for _ in range(3)], 30, parallel=6)
    assert statistics.pstdev([server.completed for server in crowd.servers]) <= 2


def test_a_server_that_is_down_from_the_start_is_left_out(serve):
    dead, well = serve(), serve()
    dead.die()
    crowd, batch = run([dead, well], 4)
    assert len(batch.images) == 4
    assert [server.completed for server in crowd.servers] == [0, 4]


def test_a_server_that_comes_back_is_used_again(serve):
    flaky, steady = serve(seconds=0.01), serve(seconds=0.05)
    flaky.on_draw = lambda count: setattr(flaky, "fault", "500" if count <= 2 else None)
    crowd, batch = run([flaky, steady], 40, parallel=4)
    assert len(batch.images) == 40
    assert crowd.servers[0].completed > 5


def test_all_servers_down_names_every_one(serve):
    servers = [serve(), serve()]
    for server in servers:
        server.die()
    with pytest.raises(UnreachableError) as error:
        generate(Job("x", " ".join(server.url for server in servers), **SIZE))
    assert all(server.url in str(error.value) for server in servers)


def test_a_failing_image_is_tried_a_bounded_number_of_times(serve):
    server = serve(fault="500")
    with pytest.raises(ServerFailedError):
        generate(Job("x", server.url, **SIZE))
    assert len(server.requests) == 3


def test_a_refused_image_is_tried_once(serve):
    server = serve(fault="400")
    with pytest.raises(GlmImageError):
        generate(Job("x", f"{server.url}, {serve().url}", count=1, **SIZE))
    assert len(server.requests) == 1


def test_a_image_that_hangs_on_one_server_is_drawn_by_the_other(serve):
    hanging, well = serve(fault="hang"), serve()
    generated = generate(Job("x", f"{hanging.url}\n{well.url}", seconds=0.5, count=2, **SIZE))
    assert len(generated.images) == 2
    assert len(hanging.requests) == 1
    assert len(well.requests) == 2
    assert "1 failed attempts were repeated" in generated.report


def test_a_image_that_times_out_everywhere_is_not_asked_for_twice(serve):
    servers = [serve(fault="hang"), serve(fault="hang")]
    begin = time.monotonic()
    with pytest.raises(GlmImageError, match="no image within 0.3 s"):
        generate(Job("x", ",".join(server.url for server in servers), seconds=0.3, **SIZE))
    assert [len(server.requests) for server in servers] == [1, 1]
    assert time.monotonic() - begin < 5


def test_servers_of_two_engines_work_together(serve):
    servers = [serve("vllm-omni", seconds=0.02), serve("sglang", seconds=0.02)]
    generated = generate(Job("x", " ".join(server.url for server in servers), count=8, seed=0, **SIZE))
    assert [of(image) for image in generated.images] == [colour(k) for k in range(8)]
    assert all(server.requests for server in servers)
    assert "(vllm-omni): " in generated.report and "(sglang): " in generated.report


def test_an_address_given_twice_is_one_server():
    assert len(read_servers("http://127.0.0.1:8091, http://127.0.0.1:8091/v1\nhttp://127.0.0.1:8092/")) == 2


def test_a_busy_server_rests_for_the_time_it_asks(monkeypatch):
    crowd, error = Pool([Server("http://127.0.0.1:1")]), BusyError("busy")
    error.retry_after = 7.0
    crowd._back_off(crowd.servers[0], error)
    assert 6 < crowd.servers[0].back_off_until - time.monotonic() <= 7


def test_one_breakdown_counts_once_however_many_requests_it_cut():
    crowd = Pool([Server("http://127.0.0.1:1")])
    for _ in range(10):
        crowd._back_off(crowd.servers[0], ServerFailedError("x"))
    assert crowd.servers[0].failures == 1


def test_a_server_that_is_always_busy_ends_with_the_timeout(monkeypatch):
    waited = Pool([Server("http://127.0.0.1:1")], seconds=2.0)
    busy = BusyError("busy")
    busy.retry_after = 60.0

    def refuse(*_):
        raise busy

    monkeypatch.setattr(Server, "generate", refuse)
    monkeypatch.setattr(Server, "connect", lambda *_: None)
    with pytest.raises(BusyError, match="busy"):
        waited._generate(ImageRequest("x", 64, 64), lambda: False)
    assert not waited.servers[0].in_flight
