"""What devices can do, and the dtypes that follow from it, without having any but the CPU."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import capabilities
from comfyui_glm_image.pipeline.devices.capabilities import ASCEND
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError

CPU = torch.device("cpu")
NPU = torch.device("meta")  # stands for a card wherever its kind is played


@pytest.fixture
def chip(monkeypatch):
    """Makes every device one of a family."""
    return lambda family: monkeypatch.setattr(capabilities, "capabilities", lambda _: ASCEND[family])


@pytest.mark.parametrize(
    ("soc", "family"),
    [
        ("Ascend910B3", "A2"),
        ("Ascend910B4-1", "A2"),
        ("Ascend910_9391", "A3"),
        ("Ascend950PR_957b", "A5"),
        ("Ascend310P3", "310P"),
    ],
)
def test_chips_belong_to_families(soc, family):
    assert capabilities._ascend(soc) is ASCEND[family]


@pytest.mark.parametrize(
    ("family", "component", "dtype"),
    [
        ("A2", "transformer", torch.bfloat16),
        ("A2", "vae", torch.bfloat16),
        ("A3", "vision_language_encoder", torch.bfloat16),
        ("310P", "transformer", torch.float16),
        ("310P", "vae", torch.float32),
    ],
)
def test_dtypes_follow_the_chip_and_the_component(chip, family, component, dtype):
    chip(family)
    assert capabilities.resolve_dtype(None, NPU, component) == dtype


def test_bfloat16_is_refused_where_there_is_none(chip):
    chip("310P")
    for choice in ("bf16", torch.bfloat16):
        with pytest.raises(InputError, match="310P.*has no bfloat16; use fp16, fp32 or auto"):
            capabilities.resolve_dtype(choice, NPU)


@pytest.mark.parametrize("has_products", [True, False])
def test_a_cpu_computes_bfloat16_files_as_they_are_if_it_can(monkeypatch, has_products):
    monkeypatch.setattr(capabilities, "multiplies_bfloat16", lambda: has_products)
    best = torch.bfloat16 if has_products else torch.float32
    for component in ("transformer", "vae"):
        assert capabilities.resolve_dtype("auto", CPU, component, torch.bfloat16) == best
        assert capabilities.resolve_dtype("fp32", CPU, component, torch.bfloat16) == torch.float32
        for stored in (torch.float16, torch.float32, None):
            assert capabilities.resolve_dtype(None, CPU, component, stored) == torch.float32


def test_products_of_bfloat16_are_known_from_the_processor(monkeypatch):
    for names, known in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ):
        capabilities.multiplies_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: names, raising=False)
        assert capabilities.multiplies_bfloat16() is known
    capabilities.multiplies_bfloat16.cache_clear()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="'fp8' is not known; use auto, bf16, fp16, fp32"):
        capabilities.resolve_dtype("fp8", CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told_with_its_stage(bad):
    with pytest.raises(GlmImageError, match="planner: float16 overflowed"):
        capabilities.check_finite(torch.tensor([1.0, bad], dtype=torch.float16), "planner")
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(GlmImageError, match="VAE: the result holds NaN or infinity"):
            capabilities.check_finite(torch.tensor([1.0, bad], dtype=dtype), "VAE")
    assert capabilities.check_finite(torch.tensor([1.0]), "planner") == 1
