"""GLM-Image Devices on a real server: what it tells before anything is loaded, and that the loader follows it."""

import json
import re

import pytest
import torch
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER, PLANNER, resolve
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.pipeline.loading.quantize_files import FileQuantization, quantize_to_files
from comfyui_glm_image.tests.comfyui.events import Events, messages
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of

RELEASE = "GLM-Image/model_index.json"
PARTS = ("planner_device", "decoder_device", "glyph_encoder_device", "vae_device")


def devices(model, width=96, height=64, count=1, **chosen) -> dict:
    chosen = {**dict.fromkeys(PARTS, "auto"), "decoder_dtype": "auto", "planner_dtype": "auto", **chosen}
    return node("GLMImageDevices", model=model, width=width, height=height, count=count, **chosen)


def with_devices(graph, **chosen):
    """The graph with GLM-Image Devices at its loader."""
    more = {"devices": devices(graph["load"]["inputs"]["model"], **chosen)}
    return change(graph | more, load_devices=["devices", 0])


def text_of(outputs, name="devices") -> str:
    return outputs[name]["text"][0]


def test_the_estimate_is_shown_and_given_out(server, random_model):
    graph = {"devices": devices(random_model), "show": node("PreviewAny", source=["devices", 1])}
    outputs = server.run(graph)
    text = text_of(outputs)
    assert text.startswith("random, 1 image of 96x64 px: fits\nplacement: everything stays loaded\n")
    assert all(part in text for part in ("planner", "decoder", "glyph encoder", "VAE", "float32", "peak on cpu"))
    assert text_of(outputs, "show") == text


def test_the_estimate_appears_at_its_node(server, random_model):
    with Events(server.url, "estimate") as events:
        seen = events.until_done(server.queue({"devices": devices(random_model, count=3)}, "estimate"))
    ((at, text),) = messages(seen)
    assert at == "devices"
    assert text.startswith("random, 3 images of 96x64 px: fits")


def test_the_release_is_estimated_before_it_is_there_and_its_graph_stops_at_the_loader(server):
    graph = with_devices(text_to_image(RELEASE), width=1024, height=1024)
    text = text_of(server.run({"devices": graph["devices"]}))
    assert text.startswith("GLM-Image, 1 image of 1024x1024 px: ")
    assert "bfloat16" in text  # computed in or, where a CPU has no products of it, stored
    queued = json.loads(server.post("/prompt", {"prompt": graph}))
    (error,) = queued["node_errors"]["load"]["errors"]
    assert "hf download" in error["details"]
    server.wait(queued["prompt_id"])  # what can be run is run
    del graph["devices"], graph["load"]["inputs"]["devices"]
    started = server.log.count("Prompt executed")
    with pytest.raises(PromptError, match="hf download") as error:
        server.run(graph)
    assert error.value.node == "load" and server.log.count("Prompt executed") == started


def test_too_large_a_batch_is_told_with_what_lacks_and_what_to_do(server):
    text = text_of(server.run({"devices": devices(RELEASE, 4096, 4096, 64)}))
    verdict, lacking, remedy = text.splitlines()[:3]
    assert verdict == "GLM-Image, 64 images of 4096x4096 px: DOES NOT FIT"
    assert lacking.startswith("cpu lacks ")
    assert remedy.startswith("Try a smaller image or fewer at once")
    assert "DOES NOT FIT. cpu lacks" in server.log


def test_8_bit_weights_count_as_such(server):
    plain, small = (
        text_of(server.run({"devices": devices(RELEASE, decoder_dtype=dtype, planner_dtype=dtype)}))
        for dtype in ("bf16", "fp8_e4m3fn")
    )
    assert small.count("float8_e4m3fn weights") == 2
    assert gib_of(plain, "planner") == pytest.approx(2 * gib_of(small, "planner"), abs=0.1)
    assert gib_of(plain, "decoder") == pytest.approx(2 * gib_of(small, "decoder"), abs=0.1)


def test_references_count_in_the_work_of_planner_and_decoder(server):
    asked = [devices(RELEASE, 1024, 1024, decoder_dtype="fp32", references=n) for n in (0, 2)]
    plain, edit = (text_of(server.run({"devices": one})) for one in asked)
    assert plain.startswith("GLM-Image, 1 image of 1024x1024 px: ")
    assert edit.startswith("GLM-Image, 1 image of 1024x1024 px, 2 references: ")
    kept = 2 * 2 * 30 * 4096 * 4096 * 4 / 2**30  # GiB of keys and values: references, both, layers, patches, width
    assert 1 < (work_of(edit, "decoder") - work_of(plain, "decoder")) / kept < 1.25
    assert work_of(edit, "planner") > work_of(plain, "planner")


def test_single_files_count_in_place_of_the_checkpoints_own_weights(server, random_model, random_folder, tmp_path):
    """As a folder of the same weights does; a form that a file is not rounded to is refused as at its loader."""
    forms = {PLANNER: "w4", DECODER: "w8"}
    whole = server.add_model("both", quantize(Quantization(resolve(random_folder), tmp_path / "both", forms)))
    made = quantize_to_files(FileQuantization(resolve(random_folder), server.base / "models", forms))
    files = {"planner_weights": made[0].name, "decoder_weights": made[1].name}
    found, wanted = (text_of(server.run({"devices": devices(*one)})) for one in ((random_model,), (whole,)))
    assert estimate_of(found) != estimate_of(wanted)
    found = text_of(server.run({"devices": devices(random_model, **files)}))
    assert found.startswith("random, ") and estimate_of(found) == estimate_of(wanted)
    with pytest.raises(PromptError, match="the planner's weights are rounded to w4 already, not to w8"):
        server.run({"devices": devices(random_model, planner_dtype="w8", **files)})
    with pytest.raises(PromptError, match="hf download"):  # settings of a checkpoint that is not here
        server.run({"devices": devices(RELEASE, **files)})


def estimate_of(text: str) -> str:
    """What is counted, without the model's name and the memory that happens to be free."""
    return re.sub(r"of [\d.]+ [GM]iB that may be used", "", text.partition("\n")[2])


def work_of(text: str, part: str) -> float:
    """GiB of work."""
    line = next(line for line in text.splitlines() if line.split()[0] == part)
    number, unit = line.split()[-3:-1]
    return float(number) / (1 if unit == "GiB" else 1024)


def gib_of(text: str, part: str) -> float:
    line = next(line for line in text.splitlines() if line.split()[0] == part)
    return float(line.split()[3])


def test_a_loader_with_the_node_draws_what_it_draws_without(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    chosen = with_devices(graph, decoder_device="cpu")
    assert torch.equal(latent_of(server, server.run(chosen)), latent_of(server, server.run(graph)))


@pytest.mark.parametrize("part", PARTS)
def test_a_device_that_is_not_there_is_refused_before_anything_runs(server, random_model, part):
    started = server.log.count("Prompt executed")
    with pytest.raises(PromptError, match="npu:7' is not in the list; choose from auto, cpu") as error:
        server.run(with_devices(text_to_image(random_model), **{part: "npu:7"}))
    assert error.value.node == "devices"
    assert server.log.count("Prompt executed") == started


def test_another_estimate_opens_no_part_again(server, random_model):
    graph = with_devices(saving_latent(text_to_image(random_model, plan_seed=64), plan=False))
    server.run(graph)
    before = server.log.count("Requested to load Managed")
    assert "2 images" in text_of(server.run(change(graph, devices_count=2)))
    assert server.log.count("Requested to load Managed") == before


def test_a_loader_without_the_input_opens_as_before(server):
    declared = server.get("/object_info/GLMImageLoader")["GLMImageLoader"]["input"]
    assert list(declared["required"]) == ["model", "decoder_dtype", "planner_dtype", "device"]
    assert [kind for kind, _ in declared["optional"].values()] == ["GLM_IMAGE_DEVICES"]
