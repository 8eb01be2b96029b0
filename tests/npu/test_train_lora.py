"""A step of a LoRA's training on a card: no operator without a kernel, and the numbers of the CPU."""

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.training.lora import layers
from comfyui_glm_image.training.lora.run_state import read_log
from comfyui_glm_image.training.lora.settings import LoraSettings
from PIL import Image
from torch.testing import assert_close

pytest.importorskip("peft")
from comfyui_glm_image.training.lora.pictures import read_folder
from comfyui_glm_image.training.lora.train import Run


@pytest.fixture
def data(tmp_path):
    """Two images whose captions have two lengths, so that a batch is padded."""
    for number, caption in enumerate(("a 'HI' sign", "a red sign that says 'HALLO'")):
        Image.effect_noise((96, 64), 50).convert("RGB").save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption, encoding="utf-8")
    return tmp_path


def curve(component, data, device, dtype, steps=2, name="", **more):
    """The losses of a run of `steps` steps, of which each but the first depends on the gradients before it."""
    words = {"model": "small", "rank": 2, "targets": "all", "steps": steps, "batch": 2, "lr": 1e-2, "warmup": 0, **more}
    out = data / f"{component}_{str(device).replace(':', '')}_{dtype}{name}"
    settings = LoraSettings(component, data, out, device=str(device), dtype=dtype, **words)
    model = GlmImage.from_pretrained("small", device=device, dtype=dtype)
    Run(settings, model, read_folder(data), report=lambda _text: None).finish()
    return [line["loss"] for line in read_log(out)]


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_steps_have_the_losses_of_the_cpu(npu, data, component):
    """The stand-in refuses operators that torch_npu would run on the host, so 0 of them is what passing means."""
    ours, theirs = (curve(component, data, device, "fp32") for device in (npu, "cpu"))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("component", ["planner", "decoder"])
def test_frozen_weights_of_bfloat16_learn_nearly_the_same(npu, data, component):
    ours, theirs = curve(component, data, npu, "bf16"), curve(component, data, "cpu", "fp32")
    assert_close(ours, theirs, rtol=0.1, atol=0.1)


def test_attention_that_is_kept_gives_the_losses_of_the_cpu_and_is_not_launched_again(npu, data, cann, monkeypatch):
    launches, losses = [], []
    for kept in (False, True):
        monkeypatch.setattr(layers, "keeps_attention", lambda *_, kept=kept: kept)
        with cann.count() as seen:
            losses.append(curve("planner", data, npu, "fp32", name=kept, keep_layers=1))
        launches.append(seen.launches)
    assert_close(losses[1], curve("planner", data, "cpu", "fp32", keep_layers=1), rtol=1e-3, atol=1e-3)
    assert losses[1] == losses[0] and launches[1] < launches[0]


def test_a_step_of_the_loop_reads_nothing_back(npu, data, cann):
    words = {"model": "small", "rank": 2, "steps": 9, "batch": 2}
    settings = LoraSettings("planner", data, data / "run", device=str(npu), **words)
    model = GlmImage.from_pretrained("small", device=npu)
    run = Run(settings, model, read_folder(data), report=lambda _text: None)
    run._take_step()
    with cann.count() as seen:
        run._take_step()
    assert seen.device_to_host_copies == 0
    assert torch.isfinite(torch.tensor([line["loss"] for line in run.log.flush()])).all()
