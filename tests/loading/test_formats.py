"""Weight files in formats of others: read within their own rounding, or refused by name; never loaded as garbage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import CheckpointError
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading import sdnq
from comfyui_glm_image.pipeline.loading.weights import Weights
from comfyui_glm_image.pipeline.models.weight_forms import W8Linear, rounded
from safetensors.torch import load_file, save_file

FILE = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn1.to_q"
WEIGHT = f"{LAYER}.weight"


@pytest.fixture
def folder(references, tmp_path):
    """A checkpoint of its own for each test, to change."""
    return shutil.copytree(references("plain")[0], tmp_path / "checkpoint")


def change(folder, metadata=None, **changes):
    """Write tensors into the decoder's file; None takes one away. `changes` may be made from the layer's weight."""
    tensors = load_file(folder / FILE)
    weight = tensors[WEIGHT].float()
    tensors |= {key: make(weight) if callable(make) else make for key, make in changes.items()}
    kept = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / FILE, metadata)
    return weight


def text(rule):
    return torch.tensor(list(json.dumps(rule).encode()), dtype=torch.uint8)


def weight_of(folder):
    model = GlmImage.from_pretrained(folder, device="cpu", dtype=torch.float32)
    layer = model.transformer.get_submodule(LAYER)
    return layer.weight * layer.weight_scale if isinstance(layer, W8Linear) else layer.weight


def scaled_fp8(weight):
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def int8(weight, dims=None):
    scale = (weight.abs().amax() if dims is None else weight.abs().amax(dims, keepdim=True)) / 127
    return (weight / scale).round().to(torch.int8), scale


@pytest.mark.parametrize("dims", [None, 1])
def test_int8_of_comfyui_stays_as_it_is(folder, dims):
    rule = {f"{LAYER}.comfy_quant": text({"format": "int8_tensorwise"})}
    codes = {WEIGHT: lambda w: int8(w, dims)[0], f"{LAYER}.weight_scale": lambda w: int8(w, dims)[1]}
    weight = change(folder, **rule, **codes)
    assert Weights(folder / "transformer").forms == {LAYER: "w8"}
    assert (weight_of(folder) - weight).abs().max() <= weight.abs().max() / 127 / 2 * 1.01
    sizes = P.CheckpointSizes.of(folder)
    assert sizes.codes[P.DECODER] == {WEIGHT: weight.numel()} and sizes.forms == {P.DECODER: "w8"}


@pytest.mark.parametrize("kind", ["comfy_quant", "metadata", "scaled_fp8"])
def test_fp8_of_comfyui_is_widened_with_its_scale(folder, kind):
    codes = {WEIGHT: lambda w: scaled_fp8(w)[0]}
    scale, metadata = {f"{LAYER}.weight_scale": lambda w: scaled_fp8(w)[1]}, None
    if kind == "comfy_quant":
        codes[f"{LAYER}.comfy_quant"] = text({"format": "float8_e4m3fn"})
        codes[f"{LAYER}.input_scale"] = torch.tensor(1.0)
    elif kind == "metadata":
        metadata = {"_quantization_metadata": json.dumps({"layers": {LAYER: {"format": "float8_e4m3fn"}}})}
    else:
        codes["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        scale = {f"{LAYER}.scale_weight": lambda w: scaled_fp8(w)[1]}
    weight = change(folder, metadata, **codes, **scale)
    difference = (weight_of(folder) - weight).abs()
    assert (difference <= weight.abs() * 2.0**-4 * 1.1 + weight.abs().max() * 2.0**-9).all()
    assert difference.max() > 0


OTHERS = {
    "NVFP4 noted by ComfyUI": ({f"{LAYER}.comfy_quant": text({"format": "nvfp4"})}, "ComfyUI's 'nvfp4'"),
    "rotated int8": (
        {WEIGHT: lambda w: int8(w)[0], f"{LAYER}.comfy_quant": text({"format": "int8_tensorwise", "convrot": True})},
        "int8_tensorwise' with rotation",
    ),
    "NVFP4 of nobody knows whom": (
        {WEIGHT: lambda w: w[:, ::2].to(torch.uint8), f"{LAYER}.weight_scale_2": torch.ones(())},
        "NVFP4 without ComfyUI's note",
    ),
    "compressed-tensors": ({WEIGHT: None, f"{LAYER}.weight_packed": lambda w: w.to(torch.uint8)}, "compressed-tensors"),
    "bitsandbytes": ({WEIGHT: lambda w: w.to(torch.uint8), f"{WEIGHT}.absmax": torch.ones(3)}, "bitsandbytes"),
    "torchao": ({WEIGHT: None, f"{LAYER}._weight_qdata": lambda w: int8(w)[0]}, "torchao"),
    "SDNQ": ({WEIGHT: lambda w: w.to(torch.uint8), f"{LAYER}.svd_up": torch.ones(3, 2)}, "SDNQ"),
    "GPTQ": ({WEIGHT: None, f"{LAYER}.qweight": torch.ones(3, 3, dtype=torch.int32)}, "an unknown format"),
    "nunchaku": ({WEIGHT: None, f"{LAYER}.wscales": torch.ones(3, 3)}, "nunchaku"),
    "codes without a word": ({WEIGHT: lambda w: int8(w)[0]}, "an unknown format .*I8"),
    "a scale without a word": ({f"{LAYER}.weight_scale": torch.ones(())}, "an unknown format"),
    "a note without a scale": (
        {WEIGHT: lambda w: int8(w)[0], f"{LAYER}.comfy_quant": text({"format": "int8_tensorwise"})},
        "no scale for all or one a row",
    ),
    "a note that is no JSON": ({f"{LAYER}.comfy_quant": torch.full((4,), 200, dtype=torch.uint8)}, "is no JSON"),
    "a note on nothing": ({"nowhere.comfy_quant": text({"format": "int8_tensorwise"})}, "has no matrix"),
}


@pytest.mark.parametrize("changes, says", OTHERS.values(), ids=OTHERS.keys())
def test_other_formats_are_refused_by_name_before_anything_is_read(folder, changes, says):
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=says):
        GlmImage.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("method", "says"), [("gptq", "GPTQ"), ("torchao", "torchao"), ("new", "unknown format")])
def test_settings_that_name_a_format_are_believed(folder, method, says):
    config = folder / "transformer" / "config.json"
    settings = {"quantization_config": {"quant_method": method}}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(CheckpointError, match=f"{says}.*glm-image quantize"):
        GlmImage.from_pretrained(folder, device="cpu")


def test_rounding_what_has_been_rounded_already_changes_nothing(folder):
    form = {f"{LAYER}.{name}": lambda w, name=name: rounded(w, "w8")[name] for name in ("weight", "weight_scale")}
    change(folder, **form, **{f"{LAYER}.comfy_quant": text({"format": "int8_tensorwise"})})
    request = P.PlacementRequest("cpu", decoder_weights="w8")
    placement = P.choose(folder, request)
    assert P.DECODER not in placement.forms


SDNQ = Path(__file__).parents[1] / "data" / "sdnq_0.2.8.safetensors"  # layers that sdnq 0.2.8 rounded and widened


def sdnq_layers():
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(SDNQ).items():
        codes, _, name = key.partition("/")
        layers.setdefault(codes, {})[name.removeprefix("l.")] = tensor
    return layers


@pytest.mark.parametrize(("codes", "layer"), sdnq_layers().items(), ids=sdnq_layers().keys())
def test_codes_of_sdnq_are_widened_as_sdnq_widens_them(codes, layer):
    whole = layer.pop("whole")
    names = tuple(name for name in sdnq.OTHERS if name in layer)
    beside = [layer[name] for name in ("scale", *names)]
    found = sdnq.widened(layer["weight"], *beside, codes=codes.removesuffix("+svd"), names=names, shape=(32, 64))
    assert (found.float() - whole.float()).abs().max() <= whole.float().abs().max() / 128  # a last digit of bfloat16


def as_sdnq(folder, **settings):
    """The decoder's layer as a folder of sdnq's holds it."""
    layer = sdnq_layers()["int5"]
    matrix = torch.zeros(weight_shape(folder))
    matrix[:32, :64] = layer.pop("whole").float()
    rows, width = matrix.shape
    scale = matrix.view(rows, -1, 16).abs().amax(2, keepdim=True).clamp(min=1e-6) / 7
    codes = (matrix.view(rows, -1, 16) / scale).round().clamp(-8, 7).to(torch.int16) + 8
    packed = (codes.flatten()[::2] | codes.flatten()[1::2] << 4).to(torch.uint8)
    change(folder, **{WEIGHT: packed, f"{LAYER}.scale": scale})
    config = folder / "transformer" / "config.json"
    how = {"quant_method": "sdnq", "weights_dtype": "uint4", "modules_dtype_dict": {"int4": [WEIGHT]}} | settings
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": how}))
    return ((codes - 8) * scale).reshape(rows, width)


def weight_shape(folder):
    return load_file(folder / FILE)[WEIGHT].shape


def test_a_folder_of_sdnq_is_read_by_its_settings(folder):
    wanted = as_sdnq(folder)
    assert Weights(folder / "transformer").headers[WEIGHT][1:] == (wanted.shape, "BF16", 2 * wanted.numel())
    assert torch.equal(weight_of(folder).bfloat16(), wanted.bfloat16())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_hadamard": True}, "SDNQ with use_hadamard.*glm-image quantize"),
        ({"modules_dtype_dict": {"uint3": [WEIGHT]}}, "SDNQ's 'uint3'"),
        ({"modules_dtype_dict": {"uint4": [WEIGHT]}}, "no zero_point"),
        ({"modules_dtype_dict": {"int7": [WEIGHT]}}, "does not hold the int7 numbers"),
    ],
)
def test_what_sdnq_can_do_beyond_is_refused_by_name(folder, settings, says):
    as_sdnq(folder, **settings)
    with pytest.raises(CheckpointError, match=says):
        GlmImage.from_pretrained(folder, device="cpu")


def as_torchao(folder, zero=0):
    """The decoder's layer as diffusers saves torchao's int8."""
    weight = load_file(folder / FILE)[WEIGHT].float()
    codes, scale = int8(weight, 1)
    parts = {"qdata": codes, "scale": scale, "zero_point": torch.full_like(codes[:, :1], zero)}
    change(folder, **{WEIGHT: None}, **{f"{LAYER}._weight_{name}": part for name, part in parts.items()})
    config = folder / "transformer" / "config.json"
    settings = {"quantization_config": {"quant_method": "torchao"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return weight


def test_int8_of_torchao_stays_as_it_is(folder):
    weight = as_torchao(folder)
    assert Weights(folder / "transformer").forms == {LAYER: "w8"}
    assert (weight_of(folder) - weight).abs().max() <= weight.abs().max() / 127 / 2 * 1.01


def test_torchao_with_zero_points_is_refused(folder):
    as_torchao(folder, zero=3)
    with pytest.raises(CheckpointError, match="torchao with zero points"):
        GlmImage.from_pretrained(folder, device="cpu")
