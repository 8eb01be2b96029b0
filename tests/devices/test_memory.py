"""How much memory there is, and what happens when it runs out."""

import logging

import pytest
import torch
from comfyui_glm_image.pipeline.devices import memory
from comfyui_glm_image.pipeline.devices.memory import Memory
from comfyui_glm_image.pipeline.errors import DeviceError

CPU = torch.device("cpu")


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
    assert memory.is_out_of_memory(RuntimeError(text))
    assert memory.is_out_of_memory(torch.OutOfMemoryError("whatever"))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory")])
def test_other_errors_are_not_exhausted_memory(error):
    assert not memory.is_out_of_memory(error)


def test_a_smaller_try_follows_exhausted_memory_only(caplog):
    def fail(error):
        raise error

    with caplog.at_level(logging.WARNING):
        assert memory.retry_smaller(CPU, lambda: fail(RuntimeError("NPU out of memory")), lambda: "tiles") == "tiles"
    assert "going on in tiles" in caplog.text
    assert memory.retry_smaller(CPU, lambda: "whole", lambda: "tiles") == "whole"
    with pytest.raises(RuntimeError, match="shapes"):
        memory.retry_smaller(CPU, lambda: fail(RuntimeError("shapes")), lambda: "tiles")


def test_exhausted_memory_while_loading_says_what_to_do(monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda _: Memory(1 << 30, 64 << 30))
    with (
        pytest.raises(DeviceError, match=r"the planner does not fit on cpu, of whose 64.0 GiB 1.0 are free.*--offload"),
        memory.explaining_out_of_memory("the planner", CPU),
    ):
        raise RuntimeError("NPU out of memory")
    with pytest.raises(RuntimeError, match="shapes"), memory.explaining_out_of_memory("the planner", CPU):
        raise RuntimeError("shapes")


def test_the_host_has_memory():
    size = memory.memory_of(CPU)
    assert 0 < size.free <= size.total
