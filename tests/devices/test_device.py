"""Devices by name, capability, dtype, memory and fault, without having any but the CPU."""

import logging

import pytest
import torch
from comfyui_glm_image.pipeline.devices import device as devices
from comfyui_glm_image.pipeline.devices.device import ASCEND, DeviceError, Memory
from comfyui_glm_image.pipeline.errors import GlmImageError, InputError

CPU = torch.device("cpu")
NPU = torch.device("meta")  # stands for a card wherever its kind is played


@pytest.fixture
def chip(monkeypatch):
    """Makes every device one of a family."""
    return lambda family: monkeypatch.setattr(devices, "capabilities", lambda _: ASCEND[family])


def test_the_cpu_is_taken_where_there_is_nothing_better():
    assert devices.resolve_device("cpu") == CPU
    assert devices.resolve_device("auto").type in ("cpu", *devices.ACCELERATORS)


def test_a_name_that_is_no_device_is_refused():
    with pytest.raises(InputError, match="'gpu' is not known; use auto, cpu, cuda"):
        devices.resolve_device("gpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(DeviceError, match=r"cuda:17 does not exist here; present: .*cpu"):
        devices.resolve_device("cuda:17")


def test_an_npu_without_torch_npu_is_explained(monkeypatch):
    if hasattr(torch, "npu"):
        pytest.skip("torch_npu is here")
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="torch_npu is not installed.*torch-npu=="):
        devices.resolve_device("npu")


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
    assert devices._ascend(soc) is ASCEND[family]


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
    assert devices.resolve_dtype(None, NPU, component) == dtype


def test_bfloat16_is_refused_where_there_is_none(chip):
    chip("310P")
    for choice in ("bf16", torch.bfloat16):
        with pytest.raises(InputError, match="310P.*has no bfloat16; use fp16, fp32 or auto"):
            devices.resolve_dtype(choice, NPU)


@pytest.mark.parametrize("has_products", [True, False])
def test_a_cpu_computes_bfloat16_files_as_they_are_if_it_can(monkeypatch, has_products):
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda: has_products)
    best = torch.bfloat16 if has_products else torch.float32
    for component in ("transformer", "vae"):
        assert devices.resolve_dtype("auto", CPU, component, torch.bfloat16) == best
        assert devices.resolve_dtype("fp32", CPU, component, torch.bfloat16) == torch.float32
        for stored in (torch.float16, torch.float32, None):
            assert devices.resolve_dtype(None, CPU, component, stored) == torch.float32


def test_products_of_bfloat16_are_known_from_the_processor(monkeypatch):
    for names, known in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ):
        devices.multiplies_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda names=names: names, raising=False)
        assert devices.multiplies_bfloat16() is known
    devices.multiplies_bfloat16.cache_clear()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="'fp8' is not known; use auto, bf16, fp16, fp32"):
        devices.resolve_dtype("fp8", CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_float16_that_overflowed_is_told_with_its_stage(bad):
    with pytest.raises(GlmImageError, match="planner: float16 overflowed"):
        devices.check_finite(torch.tensor([1.0, bad], dtype=torch.float16), "planner")
    assert devices.check_finite(torch.tensor([bad]), "planner").shape == (1,)  # other dtypes cost no look


@pytest.mark.parametrize(
    "text",
    [
        "NPU out of memory. Tried to allocate 2.00 GiB",
        "CUDA out of memory",
        "NPU function error: aclrtMalloc, error code is 207001",
        "EL0004: Failed to allocate memory",
        "rtMalloc failed",
    ],
)
def test_exhausted_memory_is_recognised_whoever_says_it(text):
    assert devices.is_out_of_memory(RuntimeError(text))
    assert devices.is_out_of_memory(torch.OutOfMemoryError("whatever"))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory")])
def test_other_errors_are_not_exhausted_memory(error):
    assert not devices.is_out_of_memory(error)


def test_a_smaller_try_follows_exhausted_memory_only(caplog):
    def fail(error):
        raise error

    with caplog.at_level(logging.WARNING):
        assert devices.retry_smaller(CPU, lambda: fail(RuntimeError("NPU out of memory")), lambda: "tiles") == "tiles"
    assert "going on in tiles" in caplog.text
    assert devices.retry_smaller(CPU, lambda: "whole", lambda: "tiles") == "whole"
    with pytest.raises(RuntimeError, match="shapes"):
        devices.retry_smaller(CPU, lambda: fail(RuntimeError("shapes")), lambda: "tiles")


def test_exhausted_memory_while_loading_says_what_to_do(monkeypatch):
    monkeypatch.setattr(devices, "memory", lambda _: Memory(1 << 30, 64 << 30))
    with (
        pytest.raises(DeviceError, match=r"the planner does not fit on cpu, of whose 64.0 GiB 1.0 are free.*--offload"),
        devices.explaining_out_of_memory("the planner", CPU),
    ):
        raise RuntimeError("NPU out of memory")
    with pytest.raises(RuntimeError, match="shapes"), devices.explaining_out_of_memory("the planner", CPU):
        raise RuntimeError("shapes")


def test_the_host_has_memory():
    size = devices.memory(CPU)
    assert 0 < size.free <= size.total


def test_a_tensor_that_strayed_is_named():
    devices.assert_on(CPU, latents=torch.zeros(1))
    with pytest.raises(RuntimeError, match="latents is on meta, this stage runs on cpu"):
        devices.assert_on(CPU, latents=torch.zeros(1, device="meta"))


def test_a_card_in_use_is_explained():
    error = RuntimeError("NPU function error: SetDevice, error code is 507033\nFailed to start the device.")
    text = devices.explain_npu_failure(error)
    for part in ("another process or container holds it", "npu-smi info", "--device cpu"):
        assert part in text
    assert "\n" not in text
