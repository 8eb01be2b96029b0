"""A planner or decoder in one file, as ComfyUI's model folders have them, in place of the checkpoint's own weights."""

import shutil
from dataclasses import replace

import pytest
import torch
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.devices.fbgemm_products import unpack
from comfyui_glm_image.pipeline.errors import CheckpointError, InputError
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.pipeline.loading.checkpoint import resolve
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.pipeline.loading.single_files import weights_at
from PIL import Image
from safetensors.torch import load_file, save_file

PLANNER, DECODER = "vision_language_encoder/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
NAMES = {P.PLANNER: "planner", P.DECODER: "transformer"}
OPTIONS = {P.PLANNER: "planner_file", P.DECODER: "decoder_file"}


@pytest.fixture
def folder(references):
    return references("plain")[0]


def opened(folder, component, file):
    return GlmImage.from_pretrained(folder, device="cpu", dtype="fp32", **{OPTIONS[component]: file})


def state_of(model, component):
    return getattr(model, NAMES[component]).state_dict()


def changed(folder, source, path, change=lambda tensors: tensors, prefix=""):
    tensors = change({f"{prefix}{key}": tensor for key, tensor in load_file(folder / source).items()})
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("component", "source", "prefix"),
    [(P.PLANNER, PLANNER, ""), (P.DECODER, DECODER, ""), (P.DECODER, DECODER, "model.diffusion_model.")],
)
def test_a_file_replaces_the_checkpoints_own_weights(folder, tmp_path, component, source, prefix):
    half = lambda tensors: {key: (tensor / 2).bfloat16() for key, tensor in tensors.items()}  # noqa: E731
    file = changed(folder, source, tmp_path / "one.safetensors", half, prefix)
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / source).unlink()  # is not asked for
    found = state_of(opened(bare, component, file), component)
    wanted = state_of(GlmImage.from_pretrained(folder, device="cpu", dtype="fp32"), component)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], (wanted[key] / 2).bfloat16().float()) for key in wanted)


def test_rounded_files_stay_as_they_are(folder, tmp_path):
    rounded = quantize(Quantization(resolve(folder), tmp_path / "out", {P.PLANNER: "w4", P.DECODER: "w8"}))
    decoder = changed(rounded, DECODER, tmp_path / "one.safetensors", prefix="model.diffusion_model.")
    files = {P.PLANNER: rounded / PLANNER, P.DECODER: decoder}
    sizes = P.CheckpointSizes.of(folder, files)
    assert sizes == P.CheckpointSizes.of(rounded) and sizes.forms == {P.PLANNER: "w4", P.DECODER: "w8"}
    model = GlmImage.from_pretrained(folder, device="cpu", planner_file=files[P.PLANNER], decoder_file=decoder)
    assert model.placement.forms == {}
    tensors = load_file(rounded / DECODER)
    for key, tensor in state_of(model, P.DECODER).items():
        assert torch.equal(tensor.float(), tensors[key].float()), key
    name = "model.language_model.layers.0.self_attn.o_proj"
    layer = model.planner.get_submodule(name)
    codes = layer.weight if layer.packed is None else unpack(layer.packed)
    assert torch.equal(codes, load_file(rounded / PLANNER)[f"{name}.weight"])


def test_files_rounded_otherwise_than_asked_are_refused(folder, tmp_path, capsys):
    rounded = quantize(Quantization(resolve(folder), tmp_path / "out", {P.PLANNER: "w4", P.DECODER: "w8"}))
    message = "the {}'s weights are rounded to {} already, not to {}; choose auto or {}, or give whole weights"
    planner = ["--model", str(folder), "--planner-file", str(rounded / PLANNER), "--planner-weights"]
    decoder = ["--model", str(rounded), "--decoder-weights"]
    for options, words in ((planner, ("planner", "w4", "w8", "w4")), (decoder, ("decoder", "w8", "w4", "w8"))):
        asked, refusal = [*options, words[2], "--device", "cpu"], message.format(*words)
        assert main(["generate", "a sign", "-o", str(tmp_path / "out.png"), *asked]) == 1
        assert refusal in capsys.readouterr().err
        assert main(["doctor", *asked]) == 1 and refusal in capsys.readouterr().out
    placement = replace(P.Placement.on(torch.device("cpu")), forms={P.DECODER: "w4"})
    with pytest.raises(InputError, match=message.format("decoder", "w8", "w4", "w8")):
        GlmImage.from_pretrained(rounded, placement=placement)
    for words in (("auto", "auto"), ("full", "full"), ("w4", "w8")):  # full: as the files have them
        request = P.PlacementRequest("cpu", planner_weights=words[0], decoder_weights=words[1])
        assert P.choose(rounded, request).forms == {}
    same = replace(placement, forms={P.PLANNER: "w4", P.DECODER: "w8"})
    assert GlmImage.from_pretrained(rounded, placement=same).placement is same


def test_fp8_with_scales_is_read_from_a_planners_file(folder, tmp_path):
    layer = "model.language_model.layers.0.mlp.down_proj"

    def as_fp8(tensors):
        weight = tensors.pop(f"{layer}.weight").float()
        scale = weight.abs().max() / 448
        small = {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}
        return tensors | small | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}

    file = changed(folder, PLANNER, tmp_path / "one.safetensors", as_fp8)
    weight = load_file(folder / PLANNER)[f"{layer}.weight"].float()
    found = state_of(opened(folder, P.PLANNER, file), P.PLANNER)[f"{layer}.weight"]
    assert 0 < (found - weight).abs().max() <= weight.abs().max() * 2.0**-4


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])
    return path


def wider(tensors):
    return tensors | {"proj_out.bias": torch.zeros(len(tensors["proj_out.bias"]) + 1)}


def twice(tensors):
    return tensors | {f"model.diffusion_model.{key}": tensor.clone() for key, tensor in tensors.items()}


WRONG = {
    "a decoder for a planner": (P.PLANNER, lambda f, p: changed(f, DECODER, p), "of a decoder, .* of a planner"),
    "a planner for a decoder": (P.DECODER, lambda f, p: changed(f, PLANNER, p), "of a planner, .* of a decoder"),
    "a glyph encoder": (P.PLANNER, lambda f, p: shutil.copy(f / "text_encoder/model.safetensors", p), "glyph encoder"),
    "other widths": (P.DECODER, lambda f, p: changed(f, DECODER, p, wider), "config.json asks for"),
    "a part": (
        P.PLANNER,
        lambda f, p: changed(f, PLANNER, p, lambda t: {k: t[k] for k in t if "norm" in k}),
        "missing",
    ),
    "truncated": (P.PLANNER, lambda f, p: cut(changed(f, PLANNER, p)), "its header asks for .* download it again"),
    "with and without a prefix": (P.DECODER, lambda f, p: changed(f, DECODER, p, twice), "twice, with a prefix"),
    "a pickle": (P.DECODER, lambda f, p: torch.save({}, p), "not a .*safetensors file"),
    "nothing": (P.DECODER, lambda f, p: None, "No such file"),
}


@pytest.mark.parametrize(("component", "make", "says"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_when_the_model_is_opened(folder, tmp_path, component, make, says):
    path = tmp_path / "one.safetensors"
    make(folder, path)
    with pytest.raises(CheckpointError, match=says) as error:
        opened(folder, component, path)
    assert "one.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_file_is_refused_before_the_hub_is_asked(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        resolve("nobody/nothing", files={P.PLANNER: tmp_path / "none.safetensors"})


def test_the_command_generates_with_files_and_notes_them(tmp_path):
    decoder = changed(SMALL, DECODER, tmp_path / "one.safetensors", prefix="model.diffusion_model.")
    files = {"planner_file": str(SMALL / PLANNER), "decoder_file": str(decoder)}
    options = [word for name, path in files.items() for word in (f"--{name.replace('_', '-')}", path)]
    size = ["--width", "128", "--height", "32", "--steps", "1", "--device", "cpu"]
    assert main(["generate", "a sign", "--model", "small", *size, *options, "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as image:
        assert files.items() <= image.text.items()


def test_a_folder_and_a_file_are_told_apart(folder):
    assert len(weights_at(folder / PLANNER).headers) == len(weights_at(folder / P.PLANNER).headers)
