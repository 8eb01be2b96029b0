"""What ComfyUI's memory management does to our parts, measured inside its Python."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_glm_image.pipeline.devices.capabilities import multiplies_bfloat16
from comfyui_glm_image.pipeline.loading.checkpoint import DECODER, resolve
from comfyui_glm_image.pipeline.loading.quantize_files import FileQuantization, quantize_to_files
from comfyui_glm_image.tests.comfyui.test_lora import adapter
from comfyui_glm_image.tools.comfyui import ROOT
from safetensors.torch import load_file, save_file

WIDTH, LAYERS = 1024, 6  # 95M parameters


@pytest.fixture(scope="module")
def decoders(random_folder, tmp_path_factory):
    """A folder of configurations, and one larger decoder's random weights in three dtypes."""
    home = tmp_path_factory.mktemp("decoder")
    for name in ("scheduler", "vae"):
        (home / name).symlink_to(random_folder / name, target_is_directory=True)
    config = json.loads((random_folder / "transformer" / "config.json").read_text())
    config |= {"num_layers": LAYERS, "num_attention_heads": WIDTH // 128, "attention_head_dim": 128}
    (home / "transformer").mkdir()
    (home / "transformer" / "config.json").write_text(json.dumps(config))
    return home, save_decoders(home)


def save_decoders(home: Path) -> dict[str, Path]:
    from comfyui_glm_image.pipeline.models.config import DitConfig
    from comfyui_glm_image.pipeline.models.transformer import Dit

    torch.manual_seed(0)
    state = Dit(DitConfig.from_json(home / "transformer" / "config.json")).state_dict()
    files = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        files[str(dtype)] = home / f"{dtype}.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in state.items()}, files[str(dtype)])
    return files


def test_norms_are_the_devices_own_kernel_unless_their_weights_are_cast(inside, random_folder):
    seen = inside("device_norms", random_folder)
    assert seen["norms"] and seen["whole"] and seen["whole"] % seen["norms"] == 0
    assert seen["cast"] == 0


def test_fp8_weights_sample_in_less_memory(inside, decoders):
    """Stored in 8 bits, cast layer by layer: close to the exact picture, for a part of its memory."""
    home, files = decoders
    seen = {name: inside("sampling", home, file) for name, file in files.items()}
    for name, one in seen.items():
        print(f"{name}: {files[name].stat().st_size >> 20} MB of weights, peak {one['peak_mb']} MB")
        assert one["finite"]
    exact, small = seen["torch.float32"], seen["torch.float8_e4m3fn"]
    assert small["stored"] == "torch.float8_e4m3fn"
    assert seen["torch.bfloat16"]["stored"] == ("torch.bfloat16" if multiplies_bfloat16() else "torch.float32")
    assert small["bias"] == "torch.float32"  # vectors are too small to be worth the errors
    assert small["peak_mb"] < 0.6 * exact["peak_mb"]
    values, wanted = torch.tensor(small["values"]), torch.tensor(exact["values"])
    assert (values - wanted).abs().mean() < 0.1 * wanted.abs().mean()


def test_a_planner_that_is_loaded_in_part_plans_the_same(inside, random_folder):
    seen = inside("partly_loaded", random_folder)
    assert seen["cast_layers"] > 10
    assert seen["equal"]


def test_weights_that_leave_a_device_are_the_files_own_again(inside, random_folder, tmp_path):
    """Whole, in part, with a LoRA and after an error; to a device of another dtype they change on their way."""
    home = bfloat16_folder(random_folder, tmp_path / "half")
    save_file(adapter(random_folder, "peft"), tmp_path / "lora.safetensors")
    found = inside("coming_and_going", home, tmp_path / "lora.safetensors")
    for dtype, name in itertools.product(("bf16", "fp16"), ("plain", "LoRA")):
        seen = found[dtype]
        assert seen["file"] == "torch.bfloat16" and seen["used"]
        assert seen[f"{name}, device"] == ["meta", {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[dtype]]
        assert seen[f"{name}, whole"] and seen[f"{name}, part"] and seen[f"{name}, broken"]
        assert 0 < seen[f"{name}, left"] < seen[f"{name}, there"]
        assert seen["made"] == seen[f"{name}, device"][1:]  # of other formats, which lie in no file as they are used


def bfloat16_folder(folder: Path, out: Path) -> Path:
    """A checkpoint's folder with the decoder in bfloat16."""
    shutil.copytree(folder, out)
    (path,) = (out / "transformer").glob("*.safetensors")
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    return out


def test_weights_arrive_in_layers_that_are_made_without_any(inside, install, random_folder):
    if not (install.app / "comfy" / "memory_management.py").is_file():
        pytest.skip(f"ComfyUI {install.version} has no dynamic memory")
    seen = inside("late_weights", random_folder)
    assert seen["meta"] == 0
    assert all(seen["count"])


def test_the_decoder_is_built_of_the_layers_it_is_given(inside, random_folder):
    seen = inside("custom_layers", random_folder)
    assert seen["finite"]
    assert seen["calls"] > seen["layers"]


def test_previews_show_the_colours_of_latents(inside):
    small = ROOT / "checkpoints" / "small"
    if not (small / "vae").is_dir():
        pytest.skip("checkpoints/small is not there")
    seen = inside("preview", small)
    assert seen["error"] < 0.4 * seen["plain"]


def test_an_autoencoder_out_of_memory_goes_on_in_tiles(inside, random_folder):
    seen = inside("out_of_memory", random_folder)
    assert seen["shape"] == [1, 768, 768, 3]
    assert seen["calls"] > 4
    assert seen["difference"] < 0.05


def test_torch_compile_settles_with_the_first_image(inside, random_folder):
    """Prompts of other lengths and other runs compile nothing anew."""
    seen = inside("compiled", random_folder)
    assert seen["nodes"] > 100  # the blocks are in one graph
    assert seen["compiled"] == [2, 2, 2]  # both passes of guidance
    assert max(seen["differences"]) < 1e-5


@pytest.fixture(scope="module")
def placements(inside):
    return inside("placements")


def test_estimates_follow_what_comfyuis_options_let_it_do(placements):
    assert placements["room"] == 24  # what ComfyUI holds on the card is free when another part needs it
    assert placements["NORMAL_VRAM"] == "planner and decoder take turns"
    assert placements["HIGH_VRAM"] == "everything stays loaded"
    assert "layers of the planner and the decoder stream" in placements["NO_VRAM"]
    assert "layers of the planner stream" in placements["NORMAL_VRAM, short"]
    assert placements["DISABLED, short"] == "planner and decoder take turns"  # nothing is loaded in pieces then


def test_a_part_never_waits_on_another_card(placements):
    waits = [placements[f"{state} waits on"] for state in ("NORMAL_VRAM", "NO_VRAM", "HIGH_VRAM")]
    assert waits == ["cpu", "cpu", "cuda:1"]


def test_4_bits_on_an_npu_are_refused_with_what_to_take(placements):
    said = placements["w4 on an NPU"]
    assert len(said) == 2 and all("command line only; take w8" in text for text in said)


def test_comfyuis_own_layers_read_a_w8_file(inside, install, random_folder, tmp_path):
    """ComfyUI has no class for this model, so that its own loader does not open the file; its layers do."""
    (file,) = quantize_to_files(FileQuantization(resolve(random_folder), tmp_path, {DECODER: "w8"}))
    seen = inside("core_layers", random_folder, file)
    if not seen["known"]:
        pytest.skip(f"ComfyUI {install.version} knows no int8")
    assert seen["equal"] and seen["layers"] == seen["marks"] > 10
    assert seen["error"] < 0.03  # it rounds a product's inputs to 8 bits too
