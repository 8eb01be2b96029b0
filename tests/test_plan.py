"""Plan files: what is saved comes back, what is damaged is named, and a failed save leaves the old file."""

import json

import pytest
import torch
from comfyui_glm_image.pipeline import plan as plan_module
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.plan import Plan, Reference, upsample_tokens
from safetensors.torch import load_file, save_file


def tokens(rows, grid, codebook=50, seed=0):
    return torch.randint(codebook, (rows, grid[0] * grid[1]), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def plan():
    reference = Reference(torch.zeros(64, 32, 3, dtype=torch.uint8), tokens(1, (2, 1))[0], (2, 1))
    prompts = ["a cat", 'ein "Grüß Gott" 日本']
    return Plan(tokens(2, (2, 3)), (2, 3), 50, prompts, 7, tokens(2, (13, 19)), (13, 19), [reference])


def equal(a, b):
    same = a.grid == b.grid and a.prompts == b.prompts and a.seed == b.seed and a.preview_grid == b.preview_grid
    return same and torch.equal(a.prior_token_ids_d32, b.prior_token_ids_d32)


def test_a_plan_comes_back_whole(plan, tmp_path):
    plan.save(tmp_path / "new" / "plan.safetensors")
    loaded = Plan.load(tmp_path / "new" / "plan.safetensors")
    assert equal(plan, loaded)
    assert torch.equal(loaded.preview_token_ids, plan.preview_token_ids)
    assert torch.equal(loaded.references[0].pixels, plan.references[0].pixels)
    assert loaded.references[0].grid == (2, 1)


def test_sizes_and_patch_tokens(plan):
    assert (plan.height, plan.width, len(plan)) == (64, 96, 2)
    assert upsample_tokens(torch.tensor([[1, 2]]), (1, 2)).tolist() == [[1, 1, 2, 2, 1, 1, 2, 2]]
    assert plan.prior_token_ids.shape == (2, 24)


def test_rows_keep_their_prompt_and_seed(plan):
    second = plan.select(slice(1, 2))
    assert (second.prompts, second.seed, len(second)) == (plan.prompts[1:], 8, 1)
    assert torch.equal(second.prior_token_ids_d32, plan.prior_token_ids_d32[1:])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prior_token_ids_d32": torch.full((2, 6), 50)}, "spans 50..50, the codebook holds 0..49"),
        ({"prior_token_ids_d32": torch.full((2, 6), -1)}, "spans -1..-1"),
        ({"prior_token_ids_d32": torch.zeros(2, 5, dtype=torch.long)}, r"expected int64 \(B, 2\*3\)"),
        ({"prior_token_ids_d32": torch.zeros(2, 6)}, "is torch.float32"),
        ({"prompts": ["one"]}, "a plan of 2 images has 1 prompts"),
    ],
)
def test_a_plan_that_cannot_be_drawn_is_refused(plan, changes, message):
    with pytest.raises(InputError, match=message):
        Plan(**{**vars(plan), **changes})


def test_files_that_are_no_plans_are_named(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        Plan.load(path)
    path.write_bytes(b"not a plan")
    with pytest.raises(InputError, match="is not a whole plan file"):
        Plan.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a GLM-Image plan"):
        Plan.load(path)
    plan.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not a whole plan file"):
        Plan.load(path)


def rewrite(path, drop=None, **metadata):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        kept = {**file.metadata(), **metadata}
    save_file({key: tensor for key, tensor in load_file(path).items() if key != drop}, path, metadata=kept)


def test_plans_of_another_version_or_damaged_are_named(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    rewrite(path, version="2")
    with pytest.raises(InputError, match="has plan version 2; this release reads 1"):
        Plan.load(path)
    plan.save(path)
    rewrite(path, drop="prior_token_ids_d32")
    with pytest.raises(InputError, match="is a damaged plan file"):
        Plan.load(path)
    plan.save(path)
    rewrite(path, plan=json.dumps({"grid": 5}))
    with pytest.raises(InputError, match="is a damaged plan file"):
        Plan.load(path)


def test_a_save_that_fails_keeps_the_old_file_and_leaves_nothing_else(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    before = path.read_bytes()

    def full(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plan_module, "save_file", full)
    with pytest.raises(OSError, match="No space left on device: .*plan.safetensors"):
        plan.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]
