"""Positions on three axes: why the planner does not take torch_npu's `npu_mrope`, by that operator's own formula.

CANN describes it as aclnnRopeWithSinCosCache: a table of cosines and sines in the dtype of the query, of which each
section takes rows by its own axis; with sections [0, 0, 0], as serving engines call it, the first axis serves all.
"""

import pytest
import torch
from comfyui_glm_image.pipeline.devices import kernels
from comfyui_glm_image.pipeline.devices.npu_kernels import FALLBACKS, FUSED
from comfyui_glm_image.pipeline.models.config import RopeConfig
from comfyui_glm_image.pipeline.models.planner import rope_tables
from comfyui_glm_image.tests.conftest import ROOT

HEAD, ROPE = 128, RopeConfig(rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[8, 12, 12])
START, SIDE = 90, 32  # a grid of 32 x 32 tokens after a prompt


def positions() -> torch.Tensor:
    """(3, tokens) time, row and column of a grid."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return START + torch.stack((torch.zeros(SIDE * SIDE, dtype=torch.long), rows.flatten(), columns.flatten()))


def npu_mrope(places: torch.Tensor, query: torch.Tensor, sections: list[int]) -> torch.Tensor:
    """(3, L) places and a query (L, HEAD) by the documented formula, mode `half`."""
    rotary = int(HEAD * ROPE.partial_rotary_factor)
    angles = torch.arange(START + SIDE)[:, None] / ROPE.rope_theta ** (torch.arange(0, rotary, 2) / rotary)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(query.dtype)
    cos, sin = table[places].chunk(2, dim=-1)  # (3, L, rotary / 2)
    if any(sections):
        cos, sin = (
            torch.cat([part[axis] for axis, part in enumerate(half.split(sections, dim=-1))], dim=-1)
            for half in (cos, sin)
        )
    else:
        cos, sin = cos[0], sin[0]
    first, second = query[:, :rotary].chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned, query[:, rotary:]), dim=-1)


def ours(places: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    cos, sin = rope_tables(places[:, None], HEAD, ROPE)
    return kernels.rope(query[None, None], cos, sin)[0, 0]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.fixture
def query():
    return torch.randn(SIDE * SIDE, HEAD, generator=torch.Generator().manual_seed(0))


def test_with_the_models_sections_the_formula_is_the_models(query):
    assert error(npu_mrope(positions(), query, ROPE.mrope_section), ours(positions(), query)) < 1e-6


def test_as_engines_call_it_rows_and_columns_are_lost(query):
    flat = npu_mrope(positions(), query, [0, 0, 0])
    assert error(flat, ours(positions(), query)) > 0.25
    ones = torch.ones_like(query)  # the same token everywhere: without rows and columns, all places look alike
    assert torch.equal(npu_mrope(positions(), ones, [0, 0, 0])[0], npu_mrope(positions(), ones, [0, 0, 0])[-1])
    assert not torch.allclose(ours(positions(), ones)[0], ours(positions(), ones)[-1])


def test_its_table_is_rounded_to_the_querys_dtype_and_ours_is_not(query):
    half = query.bfloat16()
    exact = ours(positions(), half.float())
    rounded, kept = npu_mrope(positions(), half, ROPE.mrope_section), ours(positions(), half)
    assert error(rounded, exact) > 1.3 * error(kept, exact)


def test_no_kernel_of_ours_is_that_operator():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    assert "npu_rotary_mul" in text and "mrope(" not in text
    assert FUSED["rope"].__code__.co_names.count("npu_rotary_mul") == 1 and "rope" not in FALLBACKS
