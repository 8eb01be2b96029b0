"""Plan files: what is saved comes back, what is damaged is named, and a failed save leaves the old file."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.plan import Plan, Reference, UsedLora, is_plan, upsample_tokens
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def tokens(rows, grid, codebook=50, seed=0):
    return torch.randint(codebook, (rows, grid[0] * grid[1]), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def plan():
    reference = Reference(torch.zeros(64, 32, 3, dtype=torch.uint8), tokens(1, (2, 1))[0], (2, 1))
    prompts = ["a cat", 'ein "Grüß Gott" 日本']
    return Plan(tokens(2, (2, 3)), (2, 3), 50, prompts, 7, tokens(2, (13, 19)), (13, 19), [reference], 16)


def equal(a, b):
    same = a.grid == b.grid and a.prompts == b.prompts and a.seed == b.seed and a.preview_grid == b.preview_grid
    return same and torch.equal(a.prior_token_ids_d32, b.prior_token_ids_d32)


def test_a_plan_is_known_by_its_first_bytes(plan, tmp_path):
    plan.save(tmp_path / "plan.safetensors")
    assert is_plan(tmp_path / "plan.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    deep = b"[" * 100_000
    for name, data in {"none": b"", "long": b"\xff" * 99, "deep": len(deep).to_bytes(8, "little") + deep}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    assert not any(is_plan(tmp_path / f"{name}.safetensors") for name in ("other", "none", "long", "deep", "absent"))


def test_a_plan_comes_back_whole(plan, tmp_path):
    plan.save(tmp_path / "new" / "plan.safetensors")
    loaded = Plan.load(tmp_path / "new" / "plan.safetensors")
    assert equal(plan, loaded)
    assert torch.equal(loaded.preview_token_ids, plan.preview_token_ids)
    assert torch.equal(loaded.references[0].pixels, plan.references[0].pixels)
    assert loaded.references[0].grid == (2, 1)
    assert loaded.plan_rows == 16


def test_a_plan_tells_the_loras_of_its_planner(plan, tmp_path):
    used = UsedLora("style ü.safetensors", "0a" * 32, -0.5), UsedLora("other.safetensors", "1b" * 32, 1)
    made = replace(plan, planner_loras=used)
    made.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert loaded.planner_loras == used == loaded.select(slice(1, 2)).planner_loras
    assert loaded.resized(96, 64).planner_loras == used


def test_plans_of_older_files_were_planned_one_by_one_without_lora(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["plan"])
    del about["plan_rows"], about["planner_loras"]
    save_file(load_file(path), path, {**metadata, "plan": json.dumps(about)})
    loaded = Plan.load(path)
    assert loaded.plan_rows == 1 and loaded.planner_loras == ()


@pytest.mark.parametrize(
    "wrong",
    [{"strength": float("nan")}, {"sha256": "0a"}, {"name": "\ud800"}, {"strength": "1"}, {"name": None}, {"more": 1}],
)
def test_a_plan_by_a_lora_that_cannot_be_is_damaged(plan, tmp_path, wrong):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["plan"])
    about["planner_loras"] = [{"name": "a", "sha256": "0a" * 32, "strength": 1.0} | wrong]
    save_file(load_file(path), path, {**metadata, "plan": json.dumps(about)})
    with pytest.raises(InputError, match="plan file .*"):
        Plan.load(path)


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
        ({"prior_token_ids_d32": torch.zeros(2, 5, dtype=torch.long)}, r"expected torch.int64 \(2, 6\)"),
        ({"prior_token_ids_d32": torch.zeros(2, 6)}, "is torch.float32"),
        ({"prior_token_ids_d32": [[0] * 6] * 2}, "prior_token_ids_d32 is list"),
        ({"grid": [2]}, r"grid is \[2\], expected two whole numbers"),
        ({"grid": (2, -3)}, "a side of grid -3 is not accepted; use a whole number from 1 to 128"),
        ({"grid": (10**9, 3)}, "a side of grid 1000000000"),
        ({"grid": ([2], 3)}, r"a side of grid \[2\]"),
        ({"grid": (1, 100)}, "longer than 16:1"),
        ({"preview_grid": None}, "preview_grid is None"),
        ({"prompts": "ab"}, "prompts are 'ab', expected a list"),
        ({"prompts": [1, 2]}, "expected a list of strings"),
        ({"prompts": []}, "not 0"),
        ({"prompts": ["a", "\ud800"]}, "unpaired surrogate"),
        ({"seed": 1.5}, "seed 1.5 is not accepted"),
        ({"seed": True}, "seed True"),
        ({"seed": 2**64 - 1}, "use a whole number from"),
        ({"codebook_size": "50"}, "codebook_size '50'"),
        ({"codebook_size": 0}, "codebook_size 0"),
        ({"prompts": ["one"]}, r"expected torch.int64 \(1, 6\)"),
        ({"planner_loras": ["one"]}, "planner_loras are"),
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
    with pytest.raises(InputError, match="is not whole, or not a plan"):
        Plan.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a GLM-Image plan"):
        Plan.load(path)
    plan.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not whole, or not a plan"):
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
    with pytest.raises(InputError, match="has version '2'; this release reads 1"):
        Plan.load(path)
    plan.save(path)
    rewrite(path, drop="prior_token_ids_d32")
    with pytest.raises(InputError, match="is damaged"):
        Plan.load(path)
    plan.save(path)
    rewrite(path, plan=json.dumps({"grid": 5}))
    with pytest.raises(InputError, match="is damaged"):
        Plan.load(path)


def test_a_save_that_fails_keeps_the_old_file_and_leaves_nothing_else(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="plan.safetensors cannot be written: No space left on device"):
        plan.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": torch.full((64, 32, 3), float("nan"))}, "pixels is torch.float32"),
        ({"pixels": torch.zeros(64, 64, 3, dtype=torch.uint8)}, r"expected torch.uint8 \(64, 32, 3\)"),
        ({"prior_token_ids_d32": torch.zeros(3, dtype=torch.long)}, r"expected torch.int64 \(2,\)"),
        ({"grid": (0, 1)}, "a side of a reference's grid 0"),
    ],
)
def test_a_reference_of_the_wrong_kind_is_refused(plan, changes, message):
    with pytest.raises(InputError, match=message):
        Reference(**{**vars(plan.references[0]), **changes})


ABOUT = {"grid": [2, 3], "preview_grid": None, "codebook_size": 50, "prompts": ["a", "b"], "seed": 7, "references": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '{"grid": ' + "1" * 5000 + "}",
        *(
            json.dumps(ABOUT | changes)
            for changes in (
                {"references": [[1, 1]]},
                {"references": 5},
                {"grid": [[2], [3]]},
                {"grid": "23"},
                {"preview_grid": [4, 4]},
                {"seed": None},
                {"prompts": {"a": 1}},
                {"codebook_size": 1e999},
                {"codebook_size": 5},
            )
        ),
    ],
)
def test_damaged_descriptions_are_one_sentence_that_names_the_file(plan, tmp_path, text):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    rewrite(path, plan=text)
    with pytest.raises(InputError, match="plan file .*plan.safetensors") as error:
        Plan.load(path)
    assert len(str(error.value)) < 300


def test_a_file_too_large_for_a_plan_is_not_read(tmp_path):
    path = tmp_path / "plan.safetensors"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # takes no room on the disk
    with pytest.raises(InputError, match="too large for a plan"):
        Plan.load(path)


def test_no_damaged_byte_is_more_than_an_error(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    data = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(min(len(broken), 1200))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            Plan.load(path)
        except InputError as error:
            assert len(str(error)) < 300


def test_a_resized_plan_keeps_its_composition():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    plan = Plan(ids, (2, 3), 16, ["a", "b"], 0)
    double = plan.resized(128, 192)
    assert (double.grid, double.prompts, double.preview_token_ids) == ((4, 6), ["a", "b"], None)
    wanted = ids.unflatten(1, (2, 3)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    assert torch.equal(double.prior_token_ids_d32, wanted)
    assert plan.resized(96, 64).prior_token_ids_d32[0].tolist() == [1, 3, 4, 6, 4, 6]
    assert torch.equal(double.resized(64, 96).prior_token_ids_d32, ids)
