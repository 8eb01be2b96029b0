"""What nodes refuse on a real server: values no widget offers, files and numbers that would give black images.

Every refusal is one sentence at its node, and the server goes on.
"""

import json
import os
import subprocess

import pytest
import torch
from comfyui_glm_image.tests.comfyui.events import Events, messages
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError, Server
from comfyui_glm_image.tests.comfyui.test_lora import adapter, with_lora
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of
from comfyui_glm_image.tools import comfyui
from safetensors.torch import load_file, save_file

COUNT = os.environ.get("GLM_IMAGE_BAD_NODE_INPUTS", "1120")
SEED = os.environ.get("GLM_IMAGE_BAD_INPUTS_SEED", "0")


def test_every_bad_input_of_a_node_ends_right_or_in_one_sentence(install):
    script = comfyui.ROOT / "tests" / "robustness" / "nodes.py"
    command = [install.python, str(script), str(comfyui.ROOT), "--count", COUNT, "--seed", SEED]
    done = subprocess.run(command, cwd=install.app, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["inputs"] == int(COUNT) and result["failed"] == 0


def refusal(server, graph) -> PromptError:
    """The one sentence a graph is refused with."""
    with pytest.raises(PromptError) as error:
        server.run(graph)
    assert len(error.value.text) < 400 and "Traceback" not in error.value.text
    return error.value


@pytest.fixture(scope="module")
def server(install, tmp_path_factory):
    """One of its own: enormous prompts would stay in the history that pages of other tests load."""
    running = Server(install, tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def random_model(server, random_folder):
    return server.add_model("random", random_folder)


@pytest.fixture(scope="module")
def graph(random_model):
    return saving_latent(text_to_image(random_model), plan=False)


@pytest.mark.parametrize(
    ("changes", "message", "at"),
    [
        ({"load_model": "../../../../etc"}, "model '../../../../etc' is not in the list; choose from small", "load"),
        ({"load_model": "/"}, "model '/' is not in the list", "load"),
        ({"load_decoder_dtype": "int3"}, "decoder_dtype 'int3' is not in the list; choose from auto", "load"),
        ({"load_device": 5}, "device 5 is not in the list", "load"),
        ({"text_glyph_mode": "best"}, "glyph_mode 'best' is not in the list", "text"),
        ({"text_glyph_mode": "\ud800" * 500}, "is not in the list", "text"),
        ({"plan_temperature": float("nan")}, "temperature nan is out of range; use a number from", "plan"),
        ({"plan_top_p": float("-inf")}, "top_p -inf is out of range", "plan"),
    ],
)
def test_what_no_widget_offers_is_refused_before_anything_runs(server, graph, changes, message, at):
    started = server.log.count("Prompt executed")
    error = refusal(server, change(graph, **changes))
    assert message in error.text and error.node == at
    assert server.log.count("Prompt executed") == started


@pytest.mark.parametrize(
    ("changes", "message", "at"),
    [
        ({"load_model": "GLM-Image/model_index.json"}, "hf download", "load"),
        ({"plan_width": 100}, "width 100 is not a multiple of 32; use 96 or 128", "plan"),
        ({"plan_width": 2048, "plan_height": 32}, "is longer than 16:1", "plan"),
        ({"plan_prompt": "  "}, "the prompt is empty", "plan"),
        ({"text_negative_texts": "NO\n" * 300}, "300 texts to draw in one image", "text"),
        ({"text_glyph_mode": "list", "text_glyph_texts": f"{'OPEN ' * 300}\n" * 8}, "the texts to draw have", "text"),
    ],
    ids=["model", "step", "aspect", "prompt", "negative", "texts"],
)
def test_what_would_be_refused_later_is_refused_before_anything_runs(server, graph, changes, message, at):
    started = server.log.count("Prompt executed")
    error = refusal(server, change(graph, **changes))
    assert message in error.text and error.node == at
    assert server.log.count("Prompt executed") == started


def test_details_of_an_error_show_no_path(server, graph):
    linked = graph | {"number": node("PrimitiveInt", value=-5)}
    prompt = server.queue(change(linked, plan_count=["number", 0]))
    with pytest.raises(PromptError):
        server.wait(prompt)
    entry = server.get(f"/history/{prompt}")[prompt]
    (kind,) = [data["exception_type"] for event, data in entry["status"]["messages"] if event == "execution_error"]
    assert kind == "comfyui_glm_image.pipeline.errors.InputError"


def test_numbers_that_come_by_a_link_are_refused_when_the_node_runs(server, graph):
    linked = graph | {"number": node("PrimitiveInt", value=-5)}
    error = refusal(server, change(linked, plan_count=["number", 0]))
    assert "count -5 is out of range; use a whole number from 1 to" in error.text and error.node == "plan"


@pytest.mark.parametrize("at", ["load", "plan", "text", "latent"])
def test_a_link_to_an_input_that_a_node_does_not_have_is_named(server, graph, at):
    linked = graph | {"number": node("PrimitiveInt", value=-5)}
    error = refusal(server, change(linked, **{f"{at}_reference_0": ["number", 0]}))
    assert "there is no input 'reference_0'; remove it, or use one of" in error.text and error.node == at


def test_what_is_checked_of_widgets_is_checked_of_links(server, graph):
    linked = graph | {"number": node("PrimitiveInt", value=0)}
    error = refusal(server, change(linked, plan_width=["number", 0]))
    assert "width 0 is out of range" in error.text and error.node == "plan"


@pytest.mark.parametrize("prefix", ["../../plan", "/etc/plan", "../\ud800"])
def test_a_plan_is_not_saved_outside_the_output_folder(server, graph, prefix):
    planned = {name: graph[name] for name in ("load", "plan")}  # other outputs would be drawn all the same
    saving = planned | {"plans": node("GLMImageSavePlan", plan=["plan", 0], filename_prefix=prefix)}
    error = refusal(server, saving)
    assert "leaves the output folder" in error.text and error.node == "plans"


@pytest.mark.parametrize("prompt", ["a\ud83d", "x" * 100_000, "a\x00\x1b[31m <|image|>"])
def test_no_prompt_ends_the_worker(server, graph, prompt):
    refusal(server, change(graph, plan_prompt=prompt))
    assert server.run(graph)


@pytest.mark.parametrize("where", ["transformer", "vae", "vision_language_encoder", "text_encoder"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_and_no_black_image(server, random_folder, tmp_path, where, bad):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in random_folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / where).unlink()
    (folder / where).mkdir()
    for path in (random_folder / where).iterdir():
        if path.suffix == ".safetensors":
            state = load_file(path)
            next(t for t in state.values() if t.is_floating_point() and t.ndim >= 2).view(-1)[3] = bad
            save_file(state, folder / where / path.name)
        else:
            (folder / where / path.name).symlink_to(path)
    model = server.add_model(f"{where}-{bad}", folder)
    error = refusal(server, text_to_image(model))
    assert "NaN or infinite numbers" in error.text and where in error.text


@pytest.mark.parametrize("cfg", ["nan", "inf"])
def test_a_cfg_that_is_not_finite_is_refused(server, graph, cfg):
    error = refusal(server, change(graph, sample_cfg=float(cfg)))
    assert "cfg" in error.text


TENSOR = torch.zeros(2, 2)
Q = "transformer.transformer_blocks.0.attn1.to_q"
ADAPTERS = {
    "empty": ({}, "holds no tensors"),
    "half": ({f"{Q}.lora_B.weight": torch.zeros(64, 2)}, "lora_A.weight' is missing"),
    "shape": (
        {f"{Q}.lora_A.weight": torch.zeros(2, 3), f"{Q}.lora_B.weight": torch.zeros(5, 2)},
        "does not fit 1 of 1",
    ),
    "rank": ({f"{Q}.lora_A.weight": torch.zeros(3, 64), f"{Q}.lora_B.weight": torch.zeros(64, 2)}, "does not fit"),
    "diff": ({f"{Q}.diff": torch.zeros(3, 3)}, "does not fit"),
    "alpha": (
        {f"{Q}.lora_A.weight": TENSOR, f"{Q}.lora_B.weight": TENSOR + 1, f"{Q}.alpha": torch.zeros(3)},
        "of a wrong kind",
    ),
    "nan": ({f"{Q}.lora_A.weight": TENSOR * float("nan"), f"{Q}.lora_B.weight": TENSOR}, "holds NaN or infinite"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_named(server, graph, name):
    state, message = ADAPTERS[name]
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / f"bad-{name}.safetensors")
    error = refusal(server, with_lora(graph, f"bad-{name}.safetensors"))
    assert message in error.text and error.node == "lora"


@pytest.mark.parametrize("data", [b"", b"\x00" * 20, b"not tensors", b"PK\x03\x04"])
def test_a_damaged_adapter_is_named(server, graph, data):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".pt"):
        (folder / f"damaged{suffix}").write_bytes(data)
        error = refusal(server, with_lora(graph, f"damaged{suffix}"))
        assert f"damaged{suffix}" in error.text and error.node == "lora"


def test_words_of_a_file_reach_the_page_as_text(server, graph, random_folder):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    markup = "<img src=x onerror=alert(1)>[[a|http://b]]"
    save_file(adapter(random_folder, "peft", [markup]), folder / "markup.safetensors")
    with Events(server.url, "markup") as events:
        seen = events.until_done(server.queue(with_lora(graph, "markup.safetensors"), "markup"))
    assert any("‹img" in text for _, text in messages(seen))
    assert not any(sign in repr(seen) for sign in ("<img", "[[a"))


def test_the_server_still_draws(server, graph):
    assert torch.isfinite(latent_of(server, server.run(graph))).all()
