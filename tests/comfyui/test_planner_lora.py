"""LoRA on the planner in ComfyUI: the pipeline's plans, weights that come back, and files that do not fit."""

import json

import pytest
import torch
from comfyui_glm_image.pipeline.glm_image import GlmImage
from comfyui_glm_image.tests.comfyui.graphs import change, node, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import plan_of
from safetensors import safe_open
from safetensors.torch import save_file

PROMPT = "a red sign that says 'OPEN'"
LAYERS = "self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"
KINDS = "plain", "dora", "bias"


def adapter(folder, kind: str, seed: int) -> dict[str, torch.Tensor]:
    """A rank-3 adapter of layers of the planner in `folder`, as peft names its parts."""
    generator, state = torch.Generator().manual_seed(seed), {}

    def draw(*shape):
        return 0.4 * torch.randn(shape, generator=generator)

    with safe_open(folder / "vision_language_encoder" / "model.safetensors", "pt") as file:
        for layer in (f"model.language_model.layers.{i}.{name}" for i in range(3) for name in LAYERS):
            out, width = file.get_slice(f"{layer}.weight").get_shape()
            name = f"base_model.model.{layer}"
            state |= {f"{name}.lora_A.weight": draw(3, width), f"{name}.lora_B.weight": draw(out, 3)}
            if kind == "dora":
                state[f"{name}.lora_magnitude_vector"] = 1 + draw(out).abs()
            if kind == "bias":
                state[f"{name}.lora_B.bias"] = draw(out)
    return state


def save_loras(home, folder) -> None:
    """One file of each kind for the planner in `folder`, and one for a decoder."""
    home.mkdir(parents=True, exist_ok=True)
    settings = {"lora_adapter_metadata": json.dumps({"r": 3, "lora_alpha": 4})}
    for seed, kind in enumerate(KINDS):
        save_file(adapter(folder, kind, seed), home / f"{kind}.safetensors", settings)
    save_file({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 8)}, home / "dec.safetensors")


@pytest.fixture(scope="module")
def loras(server, random_folder):
    """The server's folder of LoRA files."""
    folder = server.base / "models" / "loras"
    save_loras(folder, random_folder)
    return folder


def preview(model: GlmImage, *loras) -> list[int]:
    model.use_planner_loras(*loras)
    return model.plan(PROMPT, 64, 96, seed=3).preview_token_ids[0].tolist()


@pytest.mark.parametrize("bits, kinds", [(32, ("plain", "dora")), (32, ("bias", "plain")), (8, ("bias", "dora"))])
def test_plans_equal_the_pipelines_and_weights_come_back(inside, random_folder, eight_bits, loras, bits, kinds):
    folder = random_folder if bits == 32 else eight_bits
    one, other = (loras / f"{kind}.safetensors" for kind in kinds)
    seen, model = inside("planner_lora", folder, one, other), GlmImage.from_pretrained(folder, device="cpu")
    assert seen["plain"] == seen["off"] == seen["again"] == preview(model)
    assert seen["one"] == seen["one again"] == preview(model, one)
    assert seen["both"] == seen["partly"] == preview(model, one, (other, -0.5))
    assert seen["plain"] != seen["one"] != seen["both"] != seen["plain"]
    assert seen["restored"]
    assert seen["cast"] > 10


def graph_with(model: str, *loras) -> dict:
    """Plan without LoRA and, from the same loader, with a chain of (file, strength)."""
    graph = {name: entry for name, entry in text_to_image(model).items() if name in ("load", "plan")}
    graph["keep"] = node("GLMImageSavePlan", plan=["plan", 0], filename_prefix="plans/lora")
    planner = ["load", 0]
    for i, (file, strength) in enumerate(loras):
        graph[f"lora{i}"] = node("GLMImagePlannerLoRA", planner=planner, lora=f"{file}.safetensors", strength=strength)
        planner = [f"lora{i}", 0]
    graph["styled"] = change(graph, plan_planner=planner)["plan"]
    return graph | {"kept": node("GLMImageSavePlan", plan=["styled", 0], filename_prefix="plans/lora")}


def test_graphs_plan_with_and_without_from_one_loader(server, random_model, random_folder, loras):
    """Another strength is another plan, strength 0 is none, and plans tell what made them."""
    model, found = GlmImage.from_pretrained(random_folder, device="cpu"), {}
    for strength in (1.0, 0.0, -0.5):
        outputs = server.run(graph_with(random_model, ("plain", 1.0), ("dora", strength)))
        plain, styled = plan_of(server, outputs, "keep"), plan_of(server, outputs, "kept")
        assert plain.planner_loras == ()
        model.use_planner_loras(loras / "plain.safetensors", (loras / "dora.safetensors", strength))
        wanted = model.plan(PROMPT, 64, 96, seed=3)
        assert torch.equal(styled.preview_token_ids, wanted.preview_token_ids)
        assert styled.planner_loras == wanted.planner_loras
        found[strength] = styled.preview_token_ids
        assert not torch.equal(plain.preview_token_ids, styled.preview_token_ids)
    assert not torch.equal(found[1.0], found[0.0]) and not torch.equal(found[1.0], found[-0.5])


def test_the_node_says_what_it_read(server, random_model, loras):
    outputs = server.run(graph_with(random_model, ("dora", 0.5)))
    assert outputs["lora0"]["text"] == ["dora.safetensors: 15 layers of rank 3, DoRA"]


def test_a_file_that_was_trained_on_makes_another_plan(server, random_model, random_folder, loras):
    save_file(adapter(random_folder, "plain", 7), loras / "growing.safetensors")
    graph = graph_with(random_model, ("growing", 1.0))
    first = plan_of(server, server.run(graph), "kept")
    save_file(adapter(random_folder, "plain", 8), loras / "growing.safetensors")
    second = plan_of(server, server.run(graph), "kept")
    assert not torch.equal(first.preview_token_ids, second.preview_token_ids)
    assert first.planner_loras != second.planner_loras


def test_each_lora_node_names_the_other_for_a_file_of_the_other_part(server, random_model, loras):
    with pytest.raises(PromptError, match="'dec.safetensors' is made for the decoder") as error:
        server.run(graph_with(random_model, ("dec", 1.0)))
    assert error.value.node == "lora0"
    graph = text_to_image(random_model)
    graph["lora"] = node("GLMImageLoRA", model=["load", 1], lora="plain.safetensors", strength=1.0)
    with pytest.raises(PromptError, match="is made for the planner .* use GLM-Image Planner LoRA"):
        server.run(change(graph, sample_model=["lora", 0]))
