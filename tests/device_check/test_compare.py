"""The comparison with the reference pair: it proves parity, and it notices what is wrong."""

import json

import pytest
import torch
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.benchmark import peers
from comfyui_glm_image.pipeline.device_check import compare as module
from comfyui_glm_image.pipeline.device_check.compare import CompareRequest, Comparison, Pair, compare, psnr, relative
from comfyui_glm_image.pipeline.device_check.reference_pair import ReferencePair
from comfyui_glm_image.pipeline.device_check.results import markdown
from comfyui_glm_image.pipeline.device_check.sheet import sheet
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.loading.components import Components
from PIL import Image

REQUEST = {"prompt": "a 'HI' sign", "height": 64, "width": 96, "steps": 2, "seed": 3}


def comparison_of(folder, dtype=torch.float32):
    model = GlmImage.from_pretrained(folder, device="cpu", dtype=dtype)
    return Comparison(CompareRequest(**REQUEST), model, ReferencePair(folder, model.placement))


@pytest.fixture(scope="module")
def folder(references):
    return references("wide")[0]


@pytest.fixture
def planned(folder, monkeypatch):
    """A comparison whose plan is there already, so that the stages after it can be run alone."""
    monkeypatch.setattr(module, "STAGES", {"latents": module.latents, "image": module.image})
    comparison = comparison_of(folder)
    ids = torch.randint(0, comparison.model.codebook_size, (6,), generator=torch.Generator().manual_seed(0))
    comparison.made["plan"] = Pair(ids, ids)
    comparison.colours = torch.zeros(comparison.model.codebook_size, 3, dtype=torch.uint8)
    return comparison


def figures(report):
    return {(stage.name, figure.name): figure for stage in report.stages for figure in stage.figures}


def test_the_command_proves_parity_in_float32(folder, tmp_path, capsys):
    size = ["--height", "64", "--width", "96", "--steps", "2", "--seed", "3"]
    where = ["--model", str(folder), "--device", "cpu", "--dtype", "fp32", "-o", str(tmp_path / "c")]
    assert main(["compare", REQUEST["prompt"], *size, *where]) == 0
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["failed"] == [] and report["about"]["transformers"] and report["about"]["diffusers"]
    values = {(s["name"], f["name"]): f["value"] for s in report["stages"] for f in s["figures"]}
    tokens = values["plan", "tokens equal, each planned alone"]
    assert tokens == values["plan", "same choice after the same tokens"] > 6
    assert values["plan", "logits"] < 1e-4 and values["plan", "probabilities that sampling sees"] < 1e-4
    assert 0 < values["latents", "after all steps"] < 1e-4 and values["glyphs", "embeddings"] < 1e-4
    assert values["image", "whole image"] > 60
    assert "GLM-Image beside the reference" in (tmp_path / "c.md").read_text()
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (3 * (384 + 8) + 8, 3 * (256 + 16 + 8) + 8)
    assert "c.png" in capsys.readouterr().out


def test_half_precision_is_measured_by_the_references_own_rounding(planned, folder, monkeypatch):
    half = comparison_of(folder, torch.bfloat16)
    half.made, half.colours = planned.made, planned.colours
    report = compare(half)
    assert report.failed == []
    found = figures(report)
    assert found["latents", "after all steps"].value > 1e-4  # bfloat16 rounds, and this sees it
    assert found["latents", "the reference, noise moved by one rounding"].value > 1e-4


def test_a_wrong_weight_of_ours_is_noticed(planned, monkeypatch):
    load = Components._load

    def spoiled(self, name):
        component = load(self, name)
        if name == "transformer":
            component.proj_out.weight.mul_(1.1)
        return component

    monkeypatch.setattr(Components, "_load", spoiled)
    report = compare(planned)
    assert report.failed == ["latents"]
    assert figures(report)["latents", "after all steps"].value > 1e-2
    assert "**wrong**" in markdown(report)


def test_where_the_reference_fails_the_rest_is_compared_on_ours(planned, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ReferencePair, "denoise", fails)
    report = compare(planned)
    assert report.failed == ["latents"] and "RuntimeError: out of memory" in markdown(report)
    assert figures(report)["image", "VAE on the same latents"].good
    assert sheet(planned).size[1] > 3 * 256  # ours are shown all the same


def test_a_plan_of_the_reference_that_is_not_whole_is_told_and_ours_used(folder, monkeypatch):
    monkeypatch.setattr(module, "STAGES", {"plan": module.plan})
    monkeypatch.setattr(ReferencePair, "plan", lambda *_: (torch.zeros(9, dtype=torch.long), None))
    comparison = comparison_of(folder)
    report = compare(comparison)
    assert "the reference's plan is not whole: 9 of" in report.stages[0].error
    assert torch.equal(comparison.tokens[0], comparison.made["plan"].ours[-6:])


def test_missing_libraries_are_named_before_anything_is_loaded(folder, monkeypatch, capsys):
    monkeypatch.setattr(peers, "NEEDED", ("transformers", "no_such_library"))
    assert main(["compare", "--model", str(folder), "--device", "cpu"]) == 1
    message = capsys.readouterr().err
    assert "needs no_such_library" in message and "pip install 'comfyui-glm-image[peer]'" in message


@pytest.mark.parametrize("words", [["--planner-int8"], ["--planner-weights", "w4"], ["--decoder-weights", "w8"]])
def test_rounded_weights_have_no_reference(folder, words, capsys, tmp_path):
    where = ["--model", str(folder), "--device", "cpu", "-o", str(tmp_path / "c")]
    assert main(["compare", *where, *words]) == 1
    assert "use full weights on both sides" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_distances():
    assert relative(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])) == 1
    assert psnr(torch.tensor([0.1]), torch.tensor([0.0])) == pytest.approx(20)
    assert psnr(torch.ones(2), torch.ones(2)) == 120
    with pytest.raises(InputError, match="the reference's"):
        relative(torch.ones(2), torch.ones(1))
