"""ComfyUI's own kernels for Ascend (comfy-kitchen's backend `ascend`) beside ours: neither touches the other."""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.devices.device import resolve_device
from comfyui_glm_image.pipeline.diagnostics.tiny_models import planner_config, prompt_batch
from comfyui_glm_image.pipeline.models.config import GenerationConfig
from comfyui_glm_image.pipeline.models.planner import Planner
from comfyui_glm_image.pipeline.planning.generate import decode
from comfyui_glm_image.pipeline.planning.prefill import prefill


@pytest.fixture(scope="module")
def plan(npu):
    """Tokens that a small planner of random weights plans on the NPU."""
    device = resolve_device(npu)
    torch.manual_seed(0)
    planner = Planner(planner_config(2)).to(device, torch.bfloat16).requires_grad_(False)
    planner.fuse()

    def plan() -> torch.Tensor:
        prefix = prefill(planner, prompt_batch(), device)
        return decode(planner, prefix, GenerationConfig(0.9, 0.75), [3])["full"]

    return plan


@pytest.fixture(scope="module")
def kitchen(plan):
    """comfy-kitchen, imported after our kernels were registered and used."""
    first = plan()
    before = kernels.registered_kernels("npu")
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed here")
    return kitchen, before, first


def test_its_backend_is_there_and_comes_first(kitchen):
    backend = kitchen[0].registry.list_backends()["ascend"]
    assert backend["available"] and {"int8_linear", "apply_rope", "rms_rope"} <= set(backend["capabilities"])


def test_ours_plan_the_same_and_never_ask_it(kitchen, plan, monkeypatch):
    library, before, first = kitchen
    asked = []
    for name in ("get_implementation", "get_capable_backend"):
        if hasattr(library.registry, name):
            found = getattr(library.registry, name)
            monkeypatch.setattr(
                library.registry, name, lambda *a, found=found, **k: asked.append(a) or found(*a, **k), raising=False
            )
    assert torch.equal(plan(), first)
    assert kernels.registered_kernels("npu") == before and asked == []
    x = torch.randn(1, 2, 4, 64, device="npu:0", dtype=torch.bfloat16)
    library.apply_rope1(x, torch.eye(2, device="npu:0").expand(1, 1, 4, 32, 2, 2))
    assert asked  # the watch works


def test_its_rotation_is_ours_where_both_can(kitchen):
    x = torch.randn(1, 2, 6, 64, generator=torch.Generator().manual_seed(0)).to("npu:0")
    angles = torch.arange(6, device="npu:0")[:, None] / 100.0 ** (torch.arange(32, device="npu:0") / 32)
    cos, sin = angles.cos(), angles.sin()
    theirs = kitchen[0].apply_rope_split_half1(x, torch.stack((cos, -sin, sin, cos), -1).view(1, 1, 6, 32, 2, 2))
    tables = (torch.cat((table, table), -1)[None, None] for table in (cos, sin))
    torch.testing.assert_close(kernels.rope(x, *tables).cpu(), theirs.cpu(), rtol=1e-5, atol=1e-5)
