"""Devices by name, without having any but the CPU."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import ascend
from comfyui_glm_image.pipeline.devices import device as devices
from comfyui_glm_image.pipeline.errors import DeviceError, InputError

CPU = torch.device("cpu")


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
    monkeypatch.setattr(ascend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="torch_npu is not installed.*torch-npu=="):
        devices.resolve_device("npu")


def test_a_tensor_that_strayed_is_named():
    devices.assert_on(CPU, latents=torch.zeros(1))
    with pytest.raises(RuntimeError, match="latents is on meta, this stage runs on cpu"):
        devices.assert_on(CPU, latents=torch.zeros(1, device="meta"))


def test_the_cpu_is_one_device():
    assert devices.resolve_device("cpu:0").type == "cpu"
    with pytest.raises(DeviceError, match="device cpu:1 does not exist here: all cores are one device; use cpu"):
        devices.resolve_device("cpu:1")
    with pytest.raises(InputError, match="is not known"):
        devices.resolve_device([])
