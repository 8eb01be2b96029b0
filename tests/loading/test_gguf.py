"""GGUF files of planner and decoder, made by the package gguf: loaded as gguf widens them, or refused by name."""

import contextlib
import sys

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import CheckpointError
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.pipeline.loading.checkpoint import resolve
from comfyui_glm_image.pipeline.loading.quantize_files import FileQuantization, quantize_to_files
from comfyui_glm_image.pipeline.loading.single_files import weights_at
from comfyui_glm_image.pipeline.models.weight_forms import rounded
from safetensors.torch import load_file

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (extra: gguf)")
TYPES = gguf.GGMLQuantizationType
SOURCES = {P.PLANNER: "model.safetensors", P.DECODER: "diffusion_pytorch_model.safetensors"}


def quantised(tensor, kind):
    """An array as gguf rounds it, and its type: matrices of whole groups in `kind`, what else there is in float32."""
    array = tensor.float().numpy()
    fits = array.ndim == 2 and array.shape[1] % 32 == 0
    own = TYPES[kind] if fits else TYPES.F32
    return gguf.quants.quantize(array, own), own


def write(path, arrays, **numbers):
    """`arrays`: name -> (array, type)."""
    writer = gguf.GGUFWriter(path, "glm_image")
    for name, number in numbers.items():
        writer.add_uint16(name.replace("_", "."), number)
    for name, (array, kind) in arrays.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_as(kind, component, path, prefix=""):
    """The bundled checkpoint's component as a file, and the numbers that gguf makes of it."""
    tensors = load_file(SMALL / component / SOURCES[component])
    arrays = {key: quantised(tensor, kind) for key, tensor in tensors.items()}
    numbers = {key: gguf.quants.dequantize(*array).reshape(tensors[key].shape) for key, array in arrays.items()}
    write(path, {f"{prefix}{key}": array for key, array in arrays.items()})
    return path, {key: torch.from_numpy(array.astype(np.float32)) for key, array in numbers.items()}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32"])
def test_every_tensor_is_what_gguf_makes_of_it(tmp_path, kind):
    path, wanted = small_as(kind, P.DECODER, tmp_path / "decoder.gguf", "model.diffusion_model.")
    weights = weights_at(path)
    found = {key: tensor.clone() for key, tensor in weights.tensors()}
    assert found.keys() == wanted.keys() == weights.headers.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor.float(), wanted[key]), key
    assert weights.dtype == {"F16": torch.float16, "F32": torch.float32}.get(kind, torch.bfloat16)


def test_planner_and_decoder_load_from_files_without_the_checkpoints_own(tmp_path):
    planner, wanted = small_as("Q8_0", P.PLANNER, tmp_path / "planner.gguf")
    decoder, of_decoder = small_as("Q4_1", P.DECODER, tmp_path / "decoder.gguf")
    files = {"planner_file": planner, "decoder_file": decoder}
    model = GlmImage.from_pretrained(SMALL, device="cpu", dtype="fp32", **files)
    for module, numbers in ((model.transformer, of_decoder), (model.planner, wanted)):
        state = module.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in numbers.items())
    half = GlmImage.from_pretrained(SMALL, device="cpu", dtype="bf16", **files).transformer
    assert all(torch.equal(t, of_decoder[key].bfloat16()) for key, t in half.state_dict().items())


def test_such_a_file_is_rounded_to_8_bits_of_ours(tmp_path):
    path, wanted = small_as("Q8_0", P.DECODER, tmp_path / "decoder.gguf")
    source = resolve(SMALL, files={P.DECODER: path})
    (file,) = quantize_to_files(FileQuantization(source, tmp_path, {P.DECODER: "w8"}))
    found, layer, table = load_file(file), "transformer_blocks.0.attn1.to_q", "prior_token_embedding.weight"
    assert torch.equal(found[f"{layer}.weight"], rounded(wanted[f"{layer}.weight"], "w8")["weight"])
    assert torch.equal(found[table], wanted[table].bfloat16())


def cut(path, nbytes):
    path.write_bytes(path.read_bytes()[:nbytes])


ONES = np.ones((2, 256), np.float32)
NAME = "transformer_blocks.0.attn1.to_q.weight"
REFUSED = {
    "K-quants": ({NAME: (np.zeros((2, 144), np.uint8), TYPES.Q4_K)}, "GGUF's Q4_K; F32.*are read.*glm-image quantize"),
    "other codes": ({NAME: (np.zeros((2, 176), np.uint8), TYPES.Q5_0)}, "GGUF's Q5_0"),
    "names of llama.cpp": ({"blk.0.attn_q.weight": (ONES, TYPES.F32)}, "llama.cpp's names .blk.0.attn_q.weight"),
    "other kinds": ({NAME: (np.zeros((2, 256), np.int8), TYPES.I8)}, "GGUF's I8"),
    "a name twice": ({NAME: (ONES, TYPES.F32), f"model.diffusion_model.{NAME}": (ONES, TYPES.F32)}, "twice"),
}


@pytest.mark.parametrize(("arrays", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_other_types_and_names_are_refused(tmp_path, arrays, says):
    path = write(tmp_path / "one.gguf", arrays)
    with pytest.raises(CheckpointError, match=says) as error:
        GlmImage.from_pretrained(SMALL, device="cpu", decoder_file=path)
    assert "one.gguf" in str(error.value) and "\n" not in str(error.value)


def test_one_of_several_files_is_refused(tmp_path):
    path = write(tmp_path / "one.gguf", {NAME: (ONES, TYPES.F32)}, split_count=3)
    with pytest.raises(CheckpointError, match="one of several files; join them"):
        _ = weights_at(path).headers


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_file_that_is_cut_is_refused(tmp_path, kept):
    path, _ = small_as("Q8_0", P.DECODER, tmp_path / "one.gguf")
    cut(path, int(path.stat().st_size * kept))
    with pytest.raises(CheckpointError, match="one.gguf is not a whole GGUF file"):
        _ = weights_at(path).headers


def test_a_type_of_the_future_is_refused(tmp_path):
    path = write(tmp_path / "one.gguf", {NAME: (ONES, TYPES.F32)})
    content = bytearray(path.read_bytes())
    at = content.index(NAME.encode()) + len(NAME) + 4 + 2 * 8
    content[at : at + 4] = (999).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="GGUF's type 999"):
        _ = weights_at(path).headers


@pytest.mark.parametrize("moved", [-32, 4, 32])
def test_tensors_that_do_not_follow_each_other_are_refused(tmp_path, moved):
    """As ggml does; else one would be read out of another, or by a type that is not its own."""
    arrays = {NAME: (ONES, TYPES.F32), "proj_out.bias": (ONES, TYPES.F32), "proj_out.weight": (ONES, TYPES.F32)}
    path = write(tmp_path / "one.gguf", arrays)
    content = bytearray(path.read_bytes())
    at = content.index(b"proj_out.bias") + len("proj_out.bias") + 4 + 2 * 8 + 4
    content[at : at + 8] = (ONES.nbytes + moved).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"'proj_out.bias' lies at byte {2048 + moved} .* where 2048 is the next"):
        _ = weights_at(path).headers


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "one.gguf", {NAME: quantised(torch.ones(2, 64), "Q8_0")})
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install -U gguf"):
        _ = weights_at(path).headers


def test_whatever_is_wrong_in_a_head_is_an_error_of_ours(tmp_path):
    """Every byte of a head changed, one after the other: no hang, no other error, no number from beyond the file."""
    arrays = {NAME: quantised(torch.ones(2, 64), "Q8_0"), "proj_out.bias": (ONES, TYPES.F16)}
    whole = write(tmp_path / "one.gguf", arrays, split_count=1).read_bytes()
    head = whole.index(b"proj_out.bias") + len("proj_out.bias") + 32
    for at in range(4, head):
        for value in (9, 255):
            path = tmp_path / "changed.gguf"
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            with contextlib.suppress(CheckpointError):
                weights = weights_at(path)
                assert all(tensor.numel() <= 2 * len(whole) for _, tensor in weights.tensors())
