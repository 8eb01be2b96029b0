"""`glm-image quantize`: the folder it writes, that opening it rounds nothing, and that nothing is left half-written."""

import json
import shutil

import pytest
import torch
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import CheckpointError, FileError, InputError
from comfyui_glm_image.pipeline.loading import placement as P
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED as SMALL
from comfyui_glm_image.pipeline.loading.checkpoint import resolve
from comfyui_glm_image.pipeline.loading.quantize import Quantization, quantize
from comfyui_glm_image.pipeline.loading.quantize_files import FileQuantization, quantize_to_files
from comfyui_glm_image.pipeline.loading.weights import Weights
from comfyui_glm_image.tests.loading.test_checkpoint import edit_weights, split_into_shards
from safetensors.torch import load_file, save_file

BOTH = {P.PLANNER: "w4", P.DECODER: "w8"}
SHARD = "transformer/diffusion_pytorch_model.safetensors"
ROUNDED = P.PlacementRequest("cpu", planner_weights="w4", decoder_weights="w8")


@pytest.fixture
def source(references, tmp_path):
    """A checkpoint whose planner lies in three shards."""
    folder = shutil.copytree(references("plain")[0], tmp_path / "source")
    split_into_shards(folder / P.PLANNER, "model.safetensors")
    return folder


def job(source, out, forms=BOTH):
    return Quantization(resolve(str(source)), out, forms)


def file_job(source, out, forms=BOTH):
    return FileQuantization(resolve(str(source)), out, forms)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_opening_the_folder_gives_what_rounding_at_loading_gives(source, tmp_path):
    folder = quantize(job(source, tmp_path / "out"))
    placement = P.choose(source, ROUNDED)
    assert placement.forms == BOTH
    rounded = GlmImage.from_pretrained(source, placement=placement)
    opened = GlmImage.from_pretrained(folder, device="cpu")
    for name in ("planner", "transformer", "glyph_encoder"):
        pairs = (getattr(model, name).state_dict() for model in (rounded, opened))
        wanted, found = pairs
        assert wanted.keys() == found.keys()
        for key, tensor in wanted.items():
            assert torch.equal(tensor.float(), found[key].float()), key


def test_the_folder_has_the_hubs_layout_and_nothing_else(source, tmp_path):
    folder = quantize(job(source, tmp_path / "out"))
    names = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert {path for path in contents(folder)} <= names
    assert not list(tmp_path.glob("*.partial"))
    index = json.loads((folder / P.PLANNER / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in set(index.values()):
        assert set(load_file(folder / P.PLANNER / shard)) == {key for key, name in index.items() if name == shard}
    weights = Weights(folder / P.PLANNER)
    assert set(weights.forms.values()) == {"w8", "w4"} and weights.dtype == Weights(source / P.PLANNER).dtype


def test_the_estimate_of_the_folder_is_what_its_weights_take(source, tmp_path):
    folder = quantize(job(source, tmp_path / "out"))
    _, needs = P.plan_placement(folder, P.PlacementRequest("cpu"))
    model = GlmImage.from_pretrained(folder, device="cpu")
    live = sum(parameter.nbytes for parameter in model.transformer.parameters())
    assert needs.weights[P.DECODER] == live


def test_the_small_checkpoint_plans_in_8_bits_read_from_its_folder(tmp_path):
    assert main(["quantize", "small", "-o", str(tmp_path / "out"), "--planner", "w8", "--decoder", "w8"]) == 0
    opened = GlmImage.from_pretrained(tmp_path / "out", device="cpu")
    request = P.PlacementRequest("cpu", planner_weights="w8", decoder_weights="w8")
    rounded = GlmImage.from_pretrained(SMALL, placement=P.choose(SMALL, request))
    plans = [model.plan("a red sign that says 'OPEN'", 32, 128, seed=2) for model in (opened, rounded)]
    assert torch.equal(*(plan.prior_token_ids_d32 for plan in plans))
    assert torch.equal(*(model.denoise(plans[0], steps=2) for model in (opened, rounded)))


class Stopped(Exception):
    pass


def stopping(after):
    calls = []

    def progress(done, total, **about):
        assert 0 < done <= total and about["stage"] == "quantize"
        calls.append(done)
        if len(calls) == after:
            raise Stopped

    progress.calls = calls
    return progress


def test_an_interrupted_run_goes_on_and_ends_the_same(source, tmp_path):
    whole = quantize(job(source, tmp_path / "whole"), every := stopping(0))
    first = len(load_file(source / P.PLANNER / "part-0.safetensors"))
    with pytest.raises(Stopped):
        quantize(job(source, tmp_path / "out"), stopping(first + 5))
    assert not (tmp_path / "out").exists()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").rglob("part-*")}
    assert finished and not list((tmp_path / "out.partial").rglob(".glm-image-*"))
    folder = quantize(job(source, tmp_path / "out"), rest := stopping(0))
    assert contents(folder) == contents(whole)
    assert len(rest.calls) < len(every.calls)
    for path, time in finished.items():
        assert (folder / path.relative_to(tmp_path / "out.partial")).stat().st_mtime_ns == time


def test_a_run_of_other_forms_does_not_go_on_with_the_rest_of_this(source, tmp_path):
    with pytest.raises(Stopped):
        quantize(job(source, tmp_path / "out"), stopping(20))
    with pytest.raises(FileError, match="out.partial belongs to another checkpoint or other forms"):
        job(source, tmp_path / "out", {P.PLANNER: "w8"})


def test_what_cannot_work_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileError, match="is there already"):
        job(source, tmp_path / "full")
    with pytest.raises(InputError, match="'w5'; planner and decoder become w8 or w4"):
        job(source, tmp_path / "out", {P.PLANNER: "w5"})
    with pytest.raises(InputError, match="vae cannot become"):
        job(source, tmp_path / "out", {P.VAE: "w8"})
    with pytest.raises(InputError, match="rounded already"):
        job(quantize(job(source, tmp_path / "once")), tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(FileError, match="needs .* GiB, and 0.0 are free"):
        job(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_damaged_numbers_are_named_and_no_folder_appears(source, tmp_path):
    key = "transformer_blocks.0.attn1.to_q.weight"
    edit_weights(source / "transformer/diffusion_pytorch_model.safetensors", **{key: torch.full((64, 64), torch.nan)})
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        quantize(job(source, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("make", [job, file_job], ids=["folder", "files"])
def test_damage_is_named_in_tensors_that_stay_too_and_leaves_nothing(source, tmp_path, make):
    edit_weights(source / SHARD, **{"proj_out.bias": torch.full((64,), torch.inf)})
    work = quantize if make is job else quantize_to_files
    with pytest.raises(CheckpointError, match="proj_out.bias holds NaN or infinite"):
        work(make(source, tmp_path / "out", {P.DECODER: "w8"}))
    assert not [path for path in tmp_path.glob("out*/**/*") if path.is_file()]


@pytest.mark.parametrize("make", [job, file_job], ids=["folder", "files"])
def test_a_head_that_lies_is_refused_before_anything_is_written(source, tmp_path, make):
    """Two tensors of one place: the lengths are right, and one sees it only where all are compared."""
    content = (source / SHARD).read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    first, second = (f"transformer_blocks.0.attn1.to_{name}.weight" for name in "qk")
    head[first]["data_offsets"] = head[second]["data_offsets"]
    text = json.dumps(head).encode()
    (source / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model.safetensors is damaged: .*download it again"):
        make(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_the_command_wants_something_to_round(tmp_path, capsys):
    assert main(["quantize", "small", "-o", str(tmp_path / "out"), "--planner", "bf16"]) == 1
    assert "nothing would be rounded" in capsys.readouterr().err


NAMES = {"text_encoders/glm_image_planner_w4.safetensors", "diffusion_models/glm_image_decoder_w8.safetensors"}


def test_single_files_hold_what_the_folder_holds(source, tmp_path):
    folder = quantize(job(source, tmp_path / "out"))
    models = tmp_path / "models"
    models.mkdir()
    (models / "other").touch()  # of ComfyUI's own
    planner, decoder = quantize_to_files(file_job(source, models))
    assert {path.as_posix() for path in contents(models)} == NAMES | {"other"}
    wanted = {}
    for shard in (folder / P.PLANNER).glob("*.safetensors"):
        wanted |= load_file(shard)
    for file, tensors in ((planner, wanted), (decoder, load_file(folder / SHARD))):
        found = load_file(file)
        assert found.keys() == tensors.keys()
        assert all(
            torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in tensors.items()
        )
    opened = GlmImage.from_pretrained(source, device="cpu", planner_file=planner, decoder_file=decoder)
    assert opened.placement.forms == {} and P.CheckpointSizes.of(source, opened.checkpoint.files).forms == BOTH


@pytest.mark.parametrize("single", [False, True])
def test_weights_to_round_may_come_from_a_single_file(source, tmp_path, single):
    tensors = load_file(source / SHARD)
    file = tmp_path / "one.safetensors"
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in tensors.items()}, file)
    (source / SHARD).unlink()  # is not asked for
    given, forms = resolve(source, files={P.DECODER: file}), {P.DECODER: "w8"}
    if single:
        (made,) = quantize_to_files(FileQuantization(given, tmp_path / "out", forms))
    else:
        made = quantize(Quantization(given, tmp_path / "out", forms)) / SHARD
    save_file(tensors, source / SHARD)
    wanted, found = (load_file(path) for path in (quantize(job(source, tmp_path / "own", forms)) / SHARD, made))
    assert wanted.keys() == found.keys() and all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    with pytest.raises(InputError, match="a file is given for the decoder, which is not rounded"):
        Quantization(given, tmp_path / "other", {P.PLANNER: "w8"})
    with pytest.raises(CheckpointError, match="holds the weights of a decoder"):
        FileQuantization(resolve(source, files={P.PLANNER: file}), tmp_path / "other", {P.PLANNER: "w8"})


def test_an_interrupted_file_goes_on_with_the_next_shard(source, tmp_path):
    only = {P.PLANNER: "w8"}
    (whole,) = quantize_to_files(file_job(source, tmp_path / "whole", only), every := stopping(0))
    first = len(load_file(source / P.PLANNER / "part-0.safetensors"))
    for after in (3, first + 5):  # in the first shard, of which nothing is kept, and in the second
        with pytest.raises(Stopped):
            quantize_to_files(file_job(source, tmp_path / "out", only), stopping(after))
        assert not list((tmp_path / "out").rglob("*.safetensors"))
    cut = shutil.copytree(tmp_path / "out", tmp_path / "cut")
    (file,) = quantize_to_files(file_job(source, tmp_path / "out", only), rest := stopping(0))
    assert file.read_bytes() == whole.read_bytes() and len(every.calls) - len(rest.calls) == first
    assert list(contents(tmp_path / "out")) == [file.relative_to(tmp_path / "out")]
    (left,) = cut.rglob("*.partial")
    left.write_bytes(left.read_bytes()[:5000])  # what it says is finished is not there
    (file,) = quantize_to_files(file_job(source, cut, only))
    assert file.read_bytes() == whole.read_bytes()


def test_a_run_interrupted_in_the_second_file_goes_on_too(source, tmp_path):
    whole = quantize_to_files(file_job(source, tmp_path / "whole"), every := stopping(0))
    with pytest.raises(Stopped):
        quantize_to_files(file_job(source, tmp_path / "out"), stopping(len(every.calls) - 3))
    quantize_to_files(file_job(source, tmp_path / "out"), rest := stopping(0))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and len(whole) == 2
    assert len(rest.calls) < len(every.calls)


def test_files_that_cannot_be_made_are_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    models, only = tmp_path / "models", {P.DECODER: "w8"}
    with pytest.raises(Stopped):
        quantize_to_files(file_job(source, models, only), stopping(5))
    other = shutil.copytree(source, tmp_path / "other")
    edit_weights(other / SHARD, **{"proj_out.bias": torch.ones(64)})
    with pytest.raises(FileError, match="decoder_w8.safetensors.partial belongs to another checkpoint"):
        file_job(other, models, only)
    quantize_to_files(file_job(source, models, only))
    before = contents(models)
    with pytest.raises(FileError, match="decoder_w8.safetensors is there already"):
        file_job(source, models, only)
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="is a file; give a folder"):
        file_job(source, tmp_path / "file")
    (tmp_path / "diffusion_models").touch()
    with pytest.raises(FileError, match="diffusion_models is a file; give a folder"):
        file_job(source, tmp_path, only)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(FileError, match="needs .* GiB, and 0.0 are free"):
        file_job(source, models, {P.DECODER: "w4"})
    assert contents(models) == before


def test_the_command_writes_single_files_that_generate_reads(tmp_path, capsys):
    assert main(["quantize", "small", "-o", str(tmp_path), "--planner", "w4", "--decoder", "w8", "--single-files"]) == 0
    planner, decoder = (tmp_path / name for name in sorted(NAMES, reverse=True))
    assert f"{planner}: " in capsys.readouterr().out
    model = GlmImage.from_pretrained(SMALL, placement=P.choose(SMALL, ROUNDED))
    opened = GlmImage.from_pretrained(SMALL, device="cpu", planner_file=planner, decoder_file=decoder)
    for name in ("planner", "transformer"):
        wanted, found = (getattr(m, name).state_dict() for m in (model, opened))
        assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in wanted.items())
