"""GLM-Image Remote in a real ComfyUI, drawing on contract servers: images, errors at the node, interruption, keys.

This file starts a ComfyUI of its own, because keys come from its environment.
"""

import itertools
import json
import time

import pytest
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.events import Events, messages
from comfyui_glm_image.tests.comfyui.graphs import node
from comfyui_glm_image.tests.comfyui.server import PromptError, Server
from comfyui_glm_image.tests.remote.contract import FILTER_REASON, KEY, Contract, colour
from comfyui_glm_image.tools.workflows.builder import FOLDER, load, to_api
from comfyui_glm_image.tools.workflows.catalog import EXAMPLES
from PIL import Image


@pytest.fixture(scope="module")
def engines():
    """name -> a contract server whose `fault` a test may set; all faults are gone before the next."""
    running = {name: Contract(name) for name in ("vllm-omni", "sglang-planner", "zai")}
    running["sglang"] = Contract("sglang", version="0.5.20")  # one that edits
    yield running
    for server in running.values():
        server.die()


@pytest.fixture(scope="module")
def comfyui(install, engines, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLM_IMAGE_API_KEY", KEY)
        patch.setenv("GLM_IMAGE_API_KEY_SERVERS", engines["zai"].url)
        running = Server(install, tmp_path_factory.mktemp("remote"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def fresh(engines):
    yield
    for server in engines.values():
        server.fault, server.seconds, server.on_draw = None, 0.0, lambda count: None
        for record in (server.requests, server.effects, server.authorizations, server.closed):
            record.clear()


SEEDS = itertools.count(400, 100)  # a run with the inputs of an earlier one would come out of ComfyUI's cache
INPUTS = {
    "engine": "auto",
    "prompt": "a sign 'OPEN'",
    "width": 96,
    "height": 64,
    "steps": 8,
    "guidance": 1.5,
    "count": 1,
    "parallel": 4,
    "timeout": 20.0,
    "max_cost": 0.1,
    "on_error": "stop",
}


PLANNING = {
    "model": "small (bundled)",
    "prompt": "a sign 'OPEN'",
    "width": 96,
    "height": 64,
    "temperature": 0.9,
    "top_p": 0.75,
    "count": 1,
    "parallel": 4,
    "timeout": 20.0,
}


def graph(contract, **changes):
    hosted = {"engine": "zai", "width": 1280, "height": 1280} if contract.engine == "zai" else {}
    inputs = {"server": contract.url, **INPUTS, "seed": next(SEEDS), **hosted, **changes}
    return {
        "remote": node("GLMImageRemote", **inputs),
        "save": node("SaveImage", images=["remote", 0], filename_prefix="remote"),
        "report": node("PreviewAny", source=["remote", 1]),
    }


@pytest.mark.parametrize("engine", ["vllm-omni", "sglang"])
def test_a_batch_is_drawn_in_the_order_of_its_seeds(comfyui, engines, engine):
    outputs = comfyui.run(graph(engines[engine], seed=300, count=3))
    images = [Image.open(path) for path in comfyui.files(outputs, "save")]
    assert [image.size for image in images] == [(96, 64)] * 3
    assert [image.getpixel((5, 5)) for image in images] == [colour(300 + k) for k in range(3)]
    (report,) = outputs["report"]["text"]
    assert "3 of 3 images in" in report and f"{engines[engine].url} ({engine}): 3" in report


def test_the_layout_s_outputs_and_references_plug_in(comfyui, engines):
    page = {"scene": "A shop", "width": 128, "height": 96, "language": "english", "positions": "words"}
    nodes = graph(
        engines["sglang"],
        prompt=["page", 0],
        glyph_texts=["page", 1],
        width=["page", 4],
        height=["page", 5],
        reference_1=["red", 0],
        reference_2=["page", 3],
    )
    nodes["page"] = node("GLMImageTextLayout", max_overlap=0.35, layout="", source="title: OPEN 24h @ top 25%", **page)
    nodes["red"] = node("EmptyImage", width=48, height=32, batch_size=2, color=0xFF0000)
    outputs = comfyui.run(nodes)
    ((_, fields, references),) = engines["sglang"].requests
    assert [image.size for image in references] == [(48, 32), (48, 32), (128, 96)]
    assert fields["prompt"].startswith("A shop.") and '"OPEN 24h"' in fields["prompt"]
    assert "added to the prompt" not in outputs["report"]["text"][0]
    assert Image.open(comfyui.files(outputs, "save")[0]).size == (128, 96)


FAULTS = [
    ("vllm-omni", "400", {}, "answered 400: height is too large for this server"),
    ("vllm-omni", "500", {}, "answered 500: CUDA out of memory"),
    ("vllm-omni", "half", {}, "and closed the connection"),
    ("vllm-omni", "html", {}, "answered with text/html that is not JSON"),
    ("vllm-omni", "bad base64", {}, "an image whose base64 is broken"),
    ("vllm-omni", "bomb", {}, "sent an image"),
    ("vllm-omni", "announced gigabyte", {}, "announces 1,073,741,824 bytes"),
    ("sglang", "streamed gigabyte", {}, "given up"),
    ("sglang", "hang", {"timeout": 1.0}, "no image within 1 s"),
    ("sglang", "redirect", {}, "redirects to http://127.0.0.1:9; redirects are not followed"),
    ("zai", "withheld", {}, FILTER_REASON),
    ("zai", "withheld quietly", {}, "content filter objects to the image"),
    ("zai", "broke", {}, "Insufficient balance"),
    ("zai", None, {"max_cost": 0.01}, "more than the limit of $0.010"),
    ("zai", None, {"width": 96}, "the hosted API draws no 96x1280"),
    ("vllm-omni", None, {"server": "http://169.254.169.254"}, "is a link-local or metadata address"),
    ("vllm-omni", None, {"server": "file:///etc/passwd"}, "addresses starting with 'file:' are refused"),
    ("vllm-omni", None, {"server": ""}, "no server is given"),
]


@pytest.mark.parametrize(("engine", "fault", "changes", "message"), FAULTS)
def test_an_error_is_one_sentence_at_the_node_and_the_queue_goes_on(comfyui, engines, engine, fault, changes, message):
    server = engines[engine]
    server.fault, server.elsewhere = fault, "http://127.0.0.1:9"
    following = node("EmptyImage", width=32, height=32, batch_size=1, color=len(message))
    first = comfyui.queue(graph(server, **changes))
    second = comfyui.queue({"1": following, "2": node("PreviewImage", images=["1", 0])})
    with pytest.raises(PromptError) as error:
        comfyui.wait(first)
    server.elsewhere = ""
    assert error.value.node == "remote"
    assert message in error.value.text and "\n" not in error.value.text
    assert KEY not in error.value.text
    assert comfyui.wait(second)["2"]["images"]


@pytest.mark.parametrize("engine", ["vllm-omni", "sglang"])
def test_an_interruption_is_obeyed_within_a_second_and_closes_the_connections(comfyui, engines, engine):
    server = engines[engine]
    server.fault = "hang"
    prompt = comfyui.queue(graph(server, count=3, parallel=3))
    wait_until(lambda: len(server.requests) == 3)
    begin = time.monotonic()
    comfyui.get("/system_stats")
    assert time.monotonic() - begin < 1  # the page stays alive meanwhile
    begin = time.monotonic()
    comfyui.post("/interrupt", {})
    with pytest.raises(PromptError, match="interrupted"):
        comfyui.wait(prompt)
    seconds = time.monotonic() - begin
    print(f"interrupted after {seconds:.2f} s")
    assert seconds < 1
    wait_until(lambda: len(server.closed) == 3)
    wait_until(lambda: f"cancelled; {server.url} ({engine}) finishes what it has begun" in comfyui.log)
    server.fault = None
    assert comfyui.run(graph(server))["save"]["images"]


def test_other_nodes_run_while_a_server_draws(comfyui, engines):
    server = engines["sglang"]
    server.seconds = 2.0
    nodes = graph(server) | {"1": node("EmptyImage", width=32, height=32, batch_size=1, color=next(SEEDS))}
    nodes["quick"] = node("SaveImage", images=["1", 0], filename_prefix="quick")
    prompt = comfyui.queue(nodes)
    wait_until(lambda: server.requests)
    wait_until(lambda: list((comfyui.base / "output").glob("quick_*")), 1.5)
    assert not comfyui.get(f"/history/{prompt}")
    comfyui.wait(prompt)


def test_another_node_s_error_ends_the_request(comfyui, engines):
    """Two remote nodes draw at once; what follows the quick one fails while the other still waits."""
    hanging, quick = engines["vllm-omni"], engines["sglang"]
    hanging.fault, quick.seconds = "hang", 1.0
    nodes = graph(hanging)
    nodes["quick"] = node("GLMImageRemote", **{**INPUTS, "server": quick.url, "seed": next(SEEDS)})
    page = {"width": 96, "height": 64, "language": "english", "positions": "words", "max_overlap": 0.35}
    nodes["page"] = node("GLMImageTextLayout", scene=["quick", 1], layout="{broken", **page)
    nodes["prompt"] = node("PreviewAny", source=["page", 0])
    with pytest.raises(PromptError, match="not valid JSON"):
        comfyui.run(nodes)
    assert hanging.requests
    wait_until(lambda: hanging.closed)


def test_what_arrived_is_kept_when_asked(comfyui, engines):
    server = engines["vllm-omni"]
    server.on_draw = lambda count: setattr(server, "fault", "400" if count == 2 else None)
    outputs = comfyui.run(graph(server, count=3, parallel=1, on_error="keep what arrived"))
    assert len(outputs["save"]["images"]) == 2
    assert "image 2 failed: " in outputs["report"]["text"][0]


def test_the_cost_is_shown_at_the_node_before_the_batch_is_sent(comfyui, engines):
    server = engines["zai"]
    logged = []
    server.on_draw = lambda count: logged.append(comfyui.log)
    with Events(comfyui.url, "cost") as events:
        prompt = comfyui.queue(graph(server, count=2, parallel=1), "cost")
        shown = messages(events.until_done(prompt))
    cost = f"2 of 1280x1280 at {server.url} (zai): about $0.030, the limit is $0.100"
    assert shown[0] == ("remote", cost)
    assert cost in logged[0].rsplit("got prompt", 1)[1]
    (report,) = comfyui.wait(prompt)["report"]["text"]
    assert shown[-1] == ("remote", report)
    assert "zai takes no steps, guidance, seed: ignored" in report and "cost about $0.030" in report


def template(key: str) -> dict:
    """An example workflow, by what `tools/workflows` calls it."""
    (name,) = (example.name for example in EXAMPLES if example.key == key)
    return load(FOLDER / f"{name}.json")


WORKFLOWS = {"vllm_omni": "vllm-omni", "sglang": "sglang", "zai": "zai", "draw_plan": "vllm-omni"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_workflow_of_each_engine_runs(comfyui, engines, name):
    """As it is saved, but for the address, and for the engine where only the real address tells it."""
    server = engines[WORKFLOWS[name]]
    nodes = to_api(template(f"glm_image_remote_{name}"), comfyui.get("/object_info"))
    (drawing,) = [entry["inputs"] for entry in nodes.values() if entry["class_type"] == "GLMImageRemote"]
    (saving,) = [number for number, entry in nodes.items() if entry["class_type"] == "SaveImage"]
    drawing |= {"server": server.url, "engine": "zai" if name == "zai" else drawing["engine"]}
    images = comfyui.files(comfyui.run(nodes), saving)
    assert len(images) == drawing["count"] == len(server.requests)
    references = server.requests[0][2]
    assert len(references) == (1 if name == "sglang" else 0)


def test_the_workflow_of_a_remote_plan_draws_what_the_server_planned(comfyui, engines):
    server = engines["sglang-planner"]
    nodes = to_api(template("glm_image_remote_plan"), comfyui.get("/object_info"))
    (planning,) = [entry["inputs"] for entry in nodes.values() if entry["class_type"] == "GLMImageRemotePlan"]
    (saving,) = [number for number, entry in nodes.items() if entry["class_type"] == "SaveImage"]
    (telling,) = [number for number, entry in nodes.items() if entry["class_type"] == "PreviewAny"]
    planning["server"] = server.url
    nodes["keep"] = node("GLMImageSavePlan", plan=[next(iter(of_kind(nodes, "GLMImageRemotePlan"))), 0])
    nodes["keep"]["inputs"]["filename_prefix"] = "plans/remote"
    outputs = comfyui.run(nodes)
    assert len(server.requests) == 1 and "planned 1 in" in outputs[telling]["text"][0]
    plan = Plan.load(comfyui.base / "output" / "plans" / outputs["keep"]["plans"][0]["filename"])
    assert plan.preview_token_ids[0, :3].tolist() == [1, 2, 3]  # the contract server counts on from the seed
    (path,) = comfyui.files(outputs, saving)
    assert Image.open(path).size == (plan.width, plan.height)


def test_a_remote_plan_is_drawn_by_a_server_too(comfyui, engines):
    planner, engine = engines["sglang-planner"], engines["vllm-omni"]
    nodes = graph(engine, prompt="", plan=["plan", 0])
    planning = {**PLANNING, "server": planner.url, "seed": next(SEEDS), "count": 2}
    nodes["plan"] = node("GLMImageRemotePlan", **planning)
    outputs = comfyui.run(nodes)
    assert [len(effect.prior_token_ids) for effect in engine.effects] == [4 * 2 * 3] * 2
    assert "its planner makes a plan of its own first" in outputs["report"]["text"][0]


PLANNING_FAULTS = [
    ("400", {}, "answered 400"),
    ("hang", {"timeout": 1.0}, "no plan within 1 s"),
    (None, {"model": "GLM-Image/model_index.json"}, "download it"),
    (None, {"server": ""}, "no server is given"),
]


@pytest.mark.parametrize(("fault", "changes", "message"), PLANNING_FAULTS)
def test_an_error_of_a_remote_plan_is_one_sentence_at_its_node(comfyui, engines, fault, changes, message):
    server = engines["sglang-planner"]
    server.fault = fault
    inputs = {**PLANNING, "server": server.url, "seed": next(SEEDS), **changes}
    nodes = {"plan": node("GLMImageRemotePlan", **inputs), "report": node("PreviewAny", source=["plan", 1])}
    with pytest.raises(PromptError) as error:
        comfyui.run(nodes)
    assert error.value.node == "plan"
    assert message in error.value.text and "\n" not in error.value.text


def of_kind(nodes, kind):
    return [number for number, entry in nodes.items() if entry["class_type"] == kind]


def test_no_key_is_found_in_any_file_log_or_answer_after_a_run(comfyui, engines):
    nodes = graph(engines["zai"])
    prompt = comfyui.queue(nodes)
    outputs = comfyui.wait(prompt)
    engines["zai"].fault = "withheld"
    with pytest.raises(PromptError):
        comfyui.run(graph(engines["zai"]))
    assert f"Bearer {KEY}" in engines["zai"].authorizations
    paths = [path for path in comfyui.base.rglob("*") if path.is_file() and "custom_nodes" not in path.parts]
    assert set(comfyui.files(outputs, "save")) <= set(paths) and comfyui.log_file in paths
    found = [path for path in paths if KEY.encode() in path.read_bytes()]
    assert not found
    answers = [
        comfyui.fetch(page) for page in ("/history", f"/history/{prompt}", "/object_info/GLMImageRemote", "/queue")
    ]
    assert all(KEY.encode() not in answer for answer in [*answers, json.dumps(nodes).encode()])


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
