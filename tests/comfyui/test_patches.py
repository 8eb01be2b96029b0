"""Nodes that patch the MODEL: each changes the image, or is refused by name; none does nothing without a word."""

import pytest
import torch
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of

STEPS = 8
HONOURED = {
    "SkipLayerGuidanceDiT": {"double_layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "EasyCache": {"reuse_threshold": 2.0, "start_percent": 0.1, "end_percent": 1.0},
    "LazyCache": {"reuse_threshold": 2.0, "start_percent": 0.1, "end_percent": 1.0},
    "RenormCFG": {"renorm_cfg": 0.5},
    "RescaleCFG": {},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 0.5},
    "APG": {},
    "TCFG": {},
    "Mahiro": {},
    "FreSca": {"scale_low": 2.0},
    "OtherBlockPatch": {},
    "OtherAttention": {},
    "OtherWrapper": {},
    "OtherContextWrapper": {},
}
REFUSED = {
    "PerturbedAttentionGuidance": "attn1 of Perturbed-Attention Guidance or Self-Attention Guidance",
    "SelfAttentionGuidance": "attn1 of Perturbed-Attention Guidance or Self-Attention Guidance",
    "FreeU": "reads model_channels of a UNet",
    "FreeU_V2": "reads model_channels of a UNet",
    "HyperTile": "HyperTile",
    "TomePatchModel": "Token Merging",
    "PatchModelAddDownscale": "Kohya Deep Shrink",
    "ScaleROPE": "Scale RoPE",
    "ContextWindowsManual": "context windows",
    "OtherBlocks": "OtherBlock, which cannot run GLM-Image",
}


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture(scope="module")
def graph(random_model):
    graph = saving_latent(text_to_image(random_model, 128, 128, plan_seed=9), plan=False)
    return change(graph, sample_steps=STEPS)


@pytest.fixture(scope="module")
def plain(server, graph):
    return latent_of(server, server.run(graph))


def patched(graph, object_info, kind: str, **chosen):
    """The graph with a model patch of ComfyUI's or of another pack between loader and sampler."""
    if kind not in object_info:
        pytest.skip(f"this ComfyUI has no {kind}")
    declared = {**object_info[kind]["input"]["required"], **object_info[kind]["input"].get("optional", {})}
    inputs = {}
    for name, (type_name, *more) in declared.items():
        options = more[0] if more else {}
        if name in chosen:
            inputs[name] = chosen[name]
        elif type_name == "MODEL":
            inputs[name] = ["load", 1]
        elif isinstance(type_name, list) or type_name == "COMBO":
            inputs[name] = options.get("default") or (options.get("options") or type_name)[0]
        elif "default" in options:
            inputs[name] = options["default"]
    return change(graph | {"patch": node(kind, **inputs)}, sample_model=["patch", 0])


@pytest.mark.parametrize(("kind", "chosen"), HONOURED.items(), ids=HONOURED)
def test_a_patch_changes_the_image(server, graph, plain, object_info, kind, chosen):
    start = len(server.log)
    found = latent_of(server, server.run(patched(graph, object_info, kind, **chosen)))
    assert torch.isfinite(found).all()
    assert difference(found, plain) > 1e-4
    if kind.endswith("Cache"):
        assert f"{kind} - skipped 0/" not in server.log[start:]
        assert f"{kind} - skipped" in server.log[start:]


@pytest.mark.parametrize(("kind", "why"), REFUSED.items(), ids=REFUSED)
def test_a_patch_that_cannot_apply_is_refused_by_name(server, graph, object_info, kind, why):
    with pytest.raises(PromptError, match=why) as error:
        server.run(patched(graph, object_info, kind))
    assert "\n" not in error.value.text
    assert error.value.node in ("patch", "sample")


def test_layers_that_the_decoder_does_not_have_are_named(server, graph, object_info):
    chosen = {"double_layers": "40", "single_layers": "3", "start_percent": 0.0, "end_percent": 1.0}
    with pytest.raises(PromptError, match=r"double_block 40, single_block 3; GLM-Image has the double blocks 0 to"):
        server.run(patched(graph, object_info, "SkipLayerGuidanceDiT", **chosen))


def test_replaced_blocks_and_attention_that_do_the_same_change_nothing(server, graph, plain, object_info):
    for kind in ("OtherSameBlocks", "OtherSameAttention", "OtherSameWrapper", "OtherWritingWrapper"):
        assert difference(latent_of(server, server.run(patched(graph, object_info, kind))), plain) < 1e-5


def test_patches_see_references_and_batches(server, graph, object_info):
    picture = {"picture": node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)}
    graph = change(graph | picture, plan_reference_1=["picture", 0], text_vae=["load", 3], latent_batch_size=2)
    exact = latent_of(server, server.run(graph))
    for kind in ("OtherSameBlocks", "OtherSameAttention"):
        assert difference(latent_of(server, server.run(patched(graph, object_info, kind))), exact) < 1e-5
