"""Checkpoint folders: found, checked before a weight is read, loaded strictly; and everything that can be wrong."""

import hashlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.pipeline.errors import CheckpointError
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED, PATTERNS, download, resolve
from comfyui_glm_image.pipeline.loading.weights import Weights, load_module
from comfyui_glm_image.pipeline.models import released as release
from comfyui_glm_image.pipeline.models.config import GlyphConfig
from comfyui_glm_image.pipeline.models.glyph_encoder import GlyphEncoder
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.models.transformer import Dit
from comfyui_glm_image.pipeline.models.vae import Vae
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(references, tmp_path):
    """A checkpoint of its own for each test, to damage."""
    return shutil.copytree(references("plain")[0], tmp_path / "checkpoint")


def open_folder(folder):
    return GlmImage.from_pretrained(folder, device="cpu", dtype=torch.float32)


def split_into_shards(folder, name="diffusion_pytorch_model.safetensors", shards=3):
    """Spread one weight file over several, with an index, as large checkpoints are."""
    tensors = load_file(folder / name)
    keys = sorted(tensors)
    weight_map = {key: f"part-{i % shards}.safetensors" for i, key in enumerate(keys)}
    for file in set(weight_map.values()):
        save_file({key: tensors[key] for key in keys if weight_map[key] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / name).unlink()


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path, **changes):
    tensors = load_file(path)
    tensors.update(changes)
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)


def test_shards_load_as_one_file_does(folder):
    whole = open_folder(folder).transformer.state_dict()
    split_into_shards(folder / "transformer")
    shards = open_folder(folder).transformer.state_dict()
    assert whole.keys() == shards.keys()
    assert all(torch.equal(whole[key], shards[key]) for key in whole)


def test_weights_take_device_and_dtype_and_need_no_gradients(folder):
    path = folder / "text_encoder"
    config = GlyphConfig.from_json(path / "config.json")
    module = load_module(GlyphEncoder, config, path, "cpu", torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training


def test_loading_reports_bytes(folder):
    seen = []
    model = GlmImage.from_pretrained(
        folder, device="cpu", progress=lambda done, total, **more: seen.append((done, total))
    )
    assert model.vae and seen[-1][0] == seen[-1][1] == Weights(folder / "vae").nbytes


DAMAGE = {
    "a missing component": (lambda f: shutil.rmtree(f / "vae"), r"vae.* is missing; is the download complete"),
    "a missing weight file": (lambda f: (f / TRANSFORMER).unlink(), "transformer holds no model.safetensors or"),
    "a missing configuration": (lambda f: (f / "vae/config.json").unlink(), r"vae/config.json is missing"),
    "a truncated file": (
        lambda f: (f / TRANSFORMER).write_bytes((f / TRANSFORMER).read_bytes()[:-100]),
        r"diffusion_pytorch_model.safetensors has \d+ bytes, its header asks for \d+",
    ),
    "a file of nothing": (lambda f: (f / TRANSFORMER).write_bytes(b""), "is not a whole safetensors file"),
    "a file that is a web page": (
        lambda f: (f / TRANSFORMER).write_bytes(b"<html>" * 100),
        "is not a whole safetensors file",
    ),
    "a missing shard": (
        lambda f: (split_into_shards(f / "transformer"), (f / "transformer/part-1.safetensors").unlink()),
        "1 of 3 shards missing, first part-1.safetensors",
    ),
    "an index without a map": (
        lambda f: (split_into_shards(f / "vae"), edit_json(next((f / "vae").glob("*.index.json")), weight_map=None)),
        "key 'weight_map' is missing",
    ),
    "JSON that is not JSON": (lambda f: (f / "vae/config.json").write_text("{"), r"vae/config.json is not valid JSON"),
    "JSON of another kind": (
        lambda f: (f / "vae/config.json").write_text("[]"),
        "holds a JSON list, expected an object",
    ),
    "a pickle as weights": (
        lambda f: (f / TRANSFORMER).rename(f / "transformer/diffusion_pytorch_model.bin"),
        "is a pickle, which can run code",
    ),
    "an unknown architecture": (
        lambda f: edit_json(f / "transformer/config.json", _class_name="FluxTransformer2DModel"),
        "_class_name is 'FluxTransformer2DModel', only 'GlmImageTransformer2DModel' is supported",
    ),
    "another scheduler": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", time_shift_type="exponential"),
        "time_shift_type is 'exponential', only 'linear'",
    ),
    "a missing tokenizer": (lambda f: (f / "processor/tokenizer.json").unlink(), r"tokenizer.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_before_any_weight_is_read(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_folder(folder)


BAD_WEIGHTS = {
    "a missing key": ({"proj_out.bias": None}, "1 keys missing, first proj_out.bias"),
    "a key too many": ({"extra.weight": torch.zeros(1)}, "1 keys this model does not have, first extra.weight"),
    "a wrong shape": ({"proj_out.bias": torch.zeros(3)}, r"proj_out.bias is \(3,\), config.json asks for \(64,\)"),
    "NaN": ({"proj_out.bias": torch.full((64,), float("nan"))}, "proj_out.bias holds NaN or infinite numbers"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_wrong_weights_are_named_with_file_and_key(folder, name):
    changes, message = BAD_WEIGHTS[name]
    edit_weights(folder / TRANSFORMER, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        _ = open_folder(folder).transformer
    assert "transformer" in str(error.value)


@pytest.mark.parametrize("key", ["num_layers", "attention_head_dim"])
def test_a_configuration_without_a_key_is_refused(folder, key):
    path = folder / "transformer/config.json"
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=f"transformer/config.json: key '{key}' is missing"):
        open_folder(folder)


@pytest.mark.parametrize(
    "name, message",
    [
        ("/does/not/exist", "does not exist; give a folder or a hub id"),
        ("GLM-Image", "does not exist; give a folder or a hub id"),
        ("modelscope:ZhipuAI/GLM-Image", "pip install modelscope"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(CheckpointError, match=message):
        resolve(name)


def test_a_file_is_not_a_checkpoint(folder):
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint's folder"):
        resolve(folder / "model_index.json")


def test_a_hub_id_fetches_only_the_files_needed_and_keeps_its_revision(folder, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    checkpoint = resolve("zai-org/GLM-Image", revision="abc")
    assert (asked["name"], asked["revision"]) == ("zai-org/GLM-Image", "abc")
    assert asked["allow_patterns"] == list(PATTERNS)
    assert checkpoint.name == "zai-org/GLM-Image"


class Answer(Exception):
    """An error of the hub's client with an HTTP status."""

    def __init__(self, status):
        super().__init__(f"{status} Client Error")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached; run 'glm-image download'"),
        (HFValidationError("Repo id must be in the form"), "is no hub id; write owner/name"),
        (Answer(403), "no model zai-org/GLM-Image for you .HTTP 403"),
        (Answer(429), "asked too often"),
        (Answer(500), "the hub failed with HTTP 500"),
        (ConnectionError("closed"), "was cut off .ConnectionError: closed.; what is here is kept"),
        (ValueError("<html>" * 1000), "was cut off .ValueError"),
    ],
)
def test_what_a_download_can_meet_is_said_in_one_sentence(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as told:
        resolve("zai-org/GLM-Image")
    assert len(str(told.value)) < 300


def test_only_files_that_are_read_are_fetched():
    from fnmatch import fnmatch

    for name in ("transformer/pipeline.py", "vae/run.sh", "vae/model.bin", "README.md", "assets/a.png"):
        assert not any(fnmatch(name, pattern) for pattern in PATTERNS)
    folder = BUNDLED
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("benchmark/", "README")):
            assert any(fnmatch(name, pattern) for pattern in PATTERNS), name


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_of_the_hubs_cache_is_fetched_again(folder, tmp_path, monkeypatch, damage):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data, asked = weights.read_bytes(), []
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data[:-5] if damage == "cut" else data[:-5] + b"12345")
    weights.unlink()
    weights.symlink_to(blob)

    def fetch(name, allow_patterns, force_download=False, **_):
        asked.append((allow_patterns, force_download))
        if force_download:
            blob.write_bytes(data)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert download("zai-org/GLM-Image").folder == folder
    assert asked[1:] == [(["vae/diffusion_pytorch_model.safetensors"], True)]
    assert weights.read_bytes() == data


MEASURE = """
import sys, torch
sys.path.insert(0, {tests!r}); import conftest
from pathlib import Path
from comfyui_glm_image.pipeline.loading.weights import Weights

def peak():
    status = open('/proc/self/status').read()
    return int(status.split('VmHWM:')[1].split()[0]) << 10

before = peak()
for key, tensor in Weights(Path({folder!r})).tensors():
    tensor.clone()  # what a copy to a device reads
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_shards_holds_one_shard_at_most(tmp_path, request):
    """Peak resident memory of a fresh process over its start, mapped pages included: the kernel's VmHWM."""
    shard, count = 96 << 20, 3
    weight_map = {}
    for i in range(count):
        save_file(
            {f"w{i}.{k}": torch.ones(shard // 32, dtype=torch.float16) for k in range(16)},
            tmp_path / f"{i}.safetensors",
        )
        weight_map.update({f"w{i}.{k}": f"{i}.safetensors" for k in range(16)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    code = MEASURE.format(tests=str(request.path.parents[1]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.2 * shard + (64 << 20)  # allocators keep some; two shards would be 192 MiB


# ---- the release ----


def reference_modules():
    """The release's components by the reference libraries on the meta device."""
    from diffusers import AutoencoderKL, GlmImageTransformer2DModel
    from transformers import GlmImageConfig, GlmImageForConditionalGeneration, T5Config, T5EncoderModel

    glyph = vars(release.GLYPH)
    with torch.device("meta"):
        yield "vision_language_encoder", GlmImageForConditionalGeneration(GlmImageConfig())
        yield "text_encoder", T5EncoderModel(T5Config(**glyph, feed_forward_proj="gated-gelu"))
        yield (
            "transformer",
            GlmImageTransformer2DModel(
                num_layers=30, num_attention_heads=32, attention_head_dim=128, text_embed_dim=1472
            ),
        )
        yield (
            "vae",
            AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=[128, 512, 1024, 1024],
                layers_per_block=3,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
                mid_block_add_attention=False,
            ),
        )


def test_the_releases_key_list_loads_strictly_on_the_meta_device():
    pytest.importorskip("diffusers")
    builds = {
        "vision_language_encoder": (Planner, release.VISION_LANGUAGE),
        "text_encoder": (GlyphEncoder, release.GLYPH),
        "transformer": (Dit, release.DIT),
        "vae": (Vae, release.VAE),
    }
    for name, theirs in reference_modules():
        build, config = builds[name]
        with torch.device("meta"):
            ours = build(config)
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)


def test_the_releases_sizes_are_those_it_is_known_for():
    counts = release.parameter_counts()
    assert round(counts["vision_language_encoder"] / 1e9) in (9, 10)  # 9B, its vision tokenizer included
    assert round(counts["transformer"] / 1e9) == 7
