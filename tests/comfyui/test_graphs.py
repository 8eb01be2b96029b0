"""What users do to graphs: break them, stop them, queue several, mix in other models."""

import pytest
import torch
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.comfyui.events import Events
from comfyui_glm_image.tests.comfyui.graphs import change, decoder, node, sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of, plan_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# Graphs that cannot work: one sentence, at the node that sees it, before the first step ------------------------------


@pytest.fixture(scope="module")
def other_model(server, references):
    """A checkpoint of another codebook and other widths."""
    return server.add_model("other", references("wide")[0])


def other_size(graph):
    return change(graph, latent_width=128)


def no_plan(graph):
    graph["other"] = node("OtherConditioning", width=48)
    return change(graph, sample_positive=["other", 0])


def odd_latent(graph):
    graph["latent"] = node("EmptySD3LatentImage", width=112, height=64, batch_size=1)
    return graph


def other_codebook(graph):
    graph["load"]["inputs"]["model"] = "random/model_index.json"
    graph["planner"] = node("GLMImagePlannerLoader", model="other/model_index.json", dtype="auto", device="auto")
    return change(graph, plan_planner=["planner", 0])


def other_glyphs(graph):
    graph["glyphs"] = node(
        "GLMImageGlyphEncoderLoader", model="other/model_index.json", dtype="auto", device="auto",
        weights="from the checkpoint",
    )  # fmt: skip
    return change(graph, text_glyph_encoder=["glyphs", 0])


def with_area(graph):
    graph["area"] = node("ConditioningSetArea", conditioning=["text", 0], width=64, height=64, x=0, y=0, strength=1.0)
    return change(graph, sample_positive=["area", 0])


def fewer_images_than_plans(graph):
    return change(graph, plan_count=3, latent_batch_size=2)


def reference_without_vae(graph):
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    return change(graph, plan_reference_1=["picture", 0])


def long_reference(graph):
    graph["picture"] = node("EmptyImage", width=512, height=64, batch_size=1, color=0x3366CC)
    return change(graph, plan_reference_1=["picture", 0])


def another_reference(graph):
    """A reference put in by core's node, of which the plan knows nothing."""
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    graph["encoded"] = node("VAEEncode", pixels=["picture", 0], vae=["load", 3])
    graph["more"] = node("ReferenceLatent", conditioning=["text", 0], latent=["encoded", 0])
    return change(graph, sample_positive=["more", 0])


def empty_prompt(graph):
    return change(graph, plan_prompt="  \n")


def long_prompt(graph):
    return change(graph, plan_prompt="sign " * 9000)


def another_plan(graph):
    graph["plan2"] = node("GLMImagePlan", **{**graph["plan"]["inputs"], "seed": 77})
    graph["sample"] = decoder(4, plan="plan2")
    return graph


BAD = {
    "size": (other_size, "sample", "plan is 96x64 px, the latent 128x64 px; give both the same size"),
    "no plan": (no_plan, "sample", "positive conditioning holds no plan; make it with GLM-Image Conditioning"),
    "odd": (odd_latent, "sample", "latent is 112x64 px and GLM-Image takes multiples of 32"),
    "codebook": (other_codebook, "sample", "codebook of 100 tokens, this model one of 64"),
    "glyphs": (other_glyphs, "sample", "glyphs have 32 channels, this model takes 48"),
    "area": (with_area, "sample", "has an area, which GLM-Image cannot follow"),
    "batch": (fewer_images_than_plans, "sample", "has plans for 3 images, the latent is a batch of 2"),
    "no vae": (reference_without_vae, "text", "the plan has 1 reference images.*connect the vae of Load GLM-Image"),
    "aspect": (long_reference, "plan", "reference image 512x64 is 8.0:1, at most 4:1 is accepted"),
    "reference": (another_reference, "sample", "1 reference latents and 0 planned references"),
    "prompt": (empty_prompt, "plan", "the prompt is empty"),
    "long": (long_prompt, "plan", "the prompt has .* tokens and the image .*, the planner takes 8192 in all; shorten"),
    "plan": (another_plan, "sample", "positive was made from another plan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_graph_is_one_sentence_at_its_node(server, random_model, other_model, name):
    build, where, message = BAD[name]
    with pytest.raises(PromptError, match=message) as error:
        server.run(saving_latent(build(text_to_image(random_model)), plan=False))
    assert error.value.node == where
    assert "\n" not in error.value.text
    assert error.value.text.count(". ") == 0


def test_a_prompt_that_is_too_long_is_refused_before_the_planner_is_loaded(server, random_model):
    before = server.log.count("Requested to load ManagedPlanner")
    graph = long_prompt(text_to_image(random_model, load_planner_dtype="bf16"))
    with pytest.raises(PromptError, match="shorten the prompt"):
        server.run(saving_latent(graph))
    assert server.log.count("Requested to load ManagedPlanner") == before
    server.run(saving_latent(change(graph, plan_prompt="a sign")))
    assert server.log.count("Requested to load ManagedPlanner") == before + 1


def test_a_latent_of_another_model_is_refused(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["latent"] = node("EmptyHunyuanLatentVideo", width=96, height=64, length=1, batch_size=1)
    with pytest.raises(PromptError, match=r"GLM-Image takes \(images, 16, height, width\)") as error:
        server.run(graph)
    assert error.value.node == "sample"


def test_sizes_out_of_range_are_refused_before_anything_runs(server, random_model):
    with pytest.raises(PromptError, match="bigger than max|4096"):
        server.run(text_to_image(random_model, width=8192))


# Stopping -----------------------------------------------------------------------------------------------------------


def progress_of(events, node_id):
    return [data for name, data in events if name == "progress" and data["node"] == node_id]


def stop_when(server, graph, node_id, steps):
    """Queue a graph and interrupt it once `node_id` reports `steps` -> everything seen, and how far it had come."""
    with Events(server.url, "stopper") as events:
        prompt = server.queue(graph, "stopper")
        for name, data in events:
            if name == "progress" and data["node"] == node_id and data["value"] >= steps:
                break
        server.post("/interrupt", {})
        return events.until_done(prompt), data


def test_a_plan_stops_within_a_token(server, random_model):
    graph = text_to_image(random_model, 512, 512, plan_seed=41)
    seen, at = stop_when(server, graph, "plan", 20)
    assert seen[-1][0] == "execution_interrupted" and seen[-1][1]["node_id"] == "plan"
    later = [data["value"] for data in progress_of(seen, "plan")]
    print(f"interrupted at token {at['value']} of {at['max']}, last token {max(later, default=at['value'])}")
    assert at["max"] == 16 * 16 + 16 * 16
    assert max(later, default=0) < at["max"] / 2


def test_denoising_stops_within_a_step(server, random_model):
    graph = text_to_image(random_model, 256, 256, sample_steps=200, sample_seed=42)
    seen, at = stop_when(server, graph, "sample", 3)
    assert seen[-1][0] == "execution_interrupted" and seen[-1][1]["node_id"] == "sample"
    assert max((data["value"] for data in progress_of(seen, "sample")), default=0) < 100


def test_the_next_run_after_an_interruption_is_whole(server, random_model):
    graph = saving_latent(text_to_image(random_model, 96, 64, plan_seed=43))
    first = server.run(graph)
    stop_when(server, text_to_image(random_model, 512, 512, plan_seed=44), "plan", 10)
    again = server.run(change(graph, plans_filename_prefix="plans/again", keep_filename_prefix="again"))
    assert torch.equal(plan_of(server, first).prior_token_ids_d32, plan_of(server, again).prior_token_ids_d32)


# Progress -----------------------------------------------------------------------------------------------------------


def test_planning_shows_every_token_and_a_growing_picture(server, random_model):
    graph = saving_latent(text_to_image(random_model, 128, 128, plan_seed=51))
    with Events(server.url, "watcher") as events:
        seen = events.until_done(server.queue(graph, "watcher"))
    assert seen[-1][0] == "execution_success"
    values = [data["value"] for data in progress_of(seen, "plan")]
    total = 16 * 16 + 4 * 4
    if server.version == "0.3.75":
        assert values == list(range(1, total + 1))
    else:  # passes on ten a second, and those with a picture
        assert values == sorted(set(values)) and values[0] == 1 and values[-1] == total
        assert set(range(8, total + 1, 8)) <= set(values)
    previews = [data for name, data in seen if name == "preview"]
    assert all(data[:2] == b"\xff\xd8" for data in previews)
    assert len(previews) >= total // 8 + 6  # of the plan, then of each step of sampling


# Queues and caches --------------------------------------------------------------------------------------------------


def test_two_queued_jobs_are_both_done_as_if_alone(server, random_model):
    graphs = [saving_latent(text_to_image(random_model, plan_seed=seed, sample_seed=seed)) for seed in (61, 62)]
    prompts = [server.queue(graph) for graph in graphs]
    queued = [latent_of(server, server.wait(prompt)) for prompt in prompts]
    alone = [
        latent_of(server, server.run(change(graph, keep_filename_prefix=f"alone{i}", sample_cfg=1.5000001)))
        for i, graph in enumerate(graphs)
    ]
    assert difference(queued[0], queued[1]) > 0.1
    for one, other in zip(queued, alone):
        assert difference(one, other) < 1e-4


def test_changing_one_part_of_the_model_does_not_read_the_others_again(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=63), plan=False)
    server.run(graph)
    before = server.log.count("Requested to load ManagedPlanner")
    server.run(change(graph, load_decoder_dtype="bf16"))
    assert server.log.count("Requested to load ManagedPlanner") == before


@pytest.mark.parametrize(("changes", "again"), [({"load_decoder_dtype": "bf16"}, False), ({"plan_seed": 68}, True)])
def test_only_what_a_plan_is_made_of_makes_it_anew(server, random_model, changes, again):
    graph = saving_latent(text_to_image(random_model, plan_seed=67))
    first = plan_of(server, server.run(graph))
    with Events(server.url, "again") as events:
        done = server.queue(change(graph, keep_filename_prefix=f"again{again}", **changes), "again")
        assert bool(progress_of(events.until_done(done), "plan")) == again
    second = plan_of(server, server.wait(done))
    assert torch.equal(first.prior_token_ids_d32, second.prior_token_ids_d32) != again


def test_another_reference_makes_another_plan(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=69))
    graph["picture"] = node("EmptyImage", width=96, height=64, batch_size=1, color=0x3366CC)
    graph = change(graph, plan_reference_1=["picture", 0], text_vae=["load", 3])
    first, second = (plan_of(server, server.run(change(graph, picture_color=color))) for color in (0x3366CC, 0xFFFFFF))
    assert not torch.equal(first.references[0].pixels, second.references[0].pixels)


# Plans as files -----------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_offered_and_draws_the_same_picture(server, random_model):
    graph = saving_latent(text_to_image(random_model, plan_seed=71))
    outputs = server.run(graph)
    name = "output/" + server.files(outputs, "plans", "plans")[0].relative_to(server.base / "output").as_posix()
    assert name in server.options("GLMImageLoadPlan", "plan")
    again = change(graph, keep_filename_prefix="again")
    again["plan"] = node("GLMImageLoadPlan", plan=name)
    del again["plans"]
    assert difference(latent_of(server, server.run(again)), latent_of(server, outputs)) < 1e-5


@pytest.mark.parametrize("name", ["output/../../secret.safetensors", "/etc/passwd", "elsewhere/plan.safetensors"])
def test_no_file_outside_the_folders_is_read_as_a_plan(server, random_model, name):
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["plan"] = node("GLMImageLoadPlan", plan=name)
    with pytest.raises(PromptError) as error:
        server.run(graph)
    assert error.value.node == "plan"


def test_a_file_that_is_no_plan_is_named(server, random_model):
    save_file({"x": torch.zeros(1)}, server.base / "input" / "weights.safetensors")
    graph = saving_latent(text_to_image(random_model), plan=False)
    graph["plan"] = node("GLMImageLoadPlan", plan="input/weights.safetensors")
    with pytest.raises(PromptError, match="weights.safetensors is a safetensors file, but not a GLM-Image plan"):
        server.run(graph)


# LoRA ---------------------------------------------------------------------------------------------------------------


LAYERS = (
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.attn1.to_out.0",
)
FORMS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", "."),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", "."),
    "comfyui": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", "."),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "_"),
}


def adapter(folder, form: str, more=()) -> dict[str, torch.Tensor]:
    """A rank-2 adapter for three layers of the decoder in `folder`, under one trainer's keys."""
    down, up, joint = FORMS[form]
    state = {}
    with safe_open(folder / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        for i, layer in enumerate(LAYERS):
            rows, columns = file.get_slice(f"{layer}.weight").get_shape()
            generator = torch.Generator().manual_seed(i)
            name = layer.replace(".", joint)
            state[down.format(name)] = 0.3 * torch.randn(2, columns, generator=generator)
            state[up.format(name)] = 0.3 * torch.randn(rows, 2, generator=generator)
    return state | {key: torch.zeros(2, 2) for key in more}


def with_lora(graph, name: str, strength: float = 1.0):
    graph = graph | {"lora": node("GLMImageLoRA", model=["load", 1], lora=name, strength=strength)}
    return change(graph, sample_model=["lora", 0])


@pytest.fixture(scope="module")
def loras(server, random_folder):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        save_file(adapter(random_folder, form), folder / f"{form}.safetensors")
    save_file(adapter(random_folder, "peft", ["transformer.layers.9.lora_A.weight"]), folder / "extra.safetensors")
    save_file({"unet.down.weight": torch.zeros(2, 2)}, folder / "foreign.safetensors")
    return folder


def test_every_trainers_keys_give_the_same_picture(server, random_model, random_folder, loras):
    graph = saving_latent(text_to_image(random_model), plan=False)
    plain = latent_of(server, server.run(graph))
    found = [latent_of(server, server.run(with_lora(graph, f"{form}.safetensors"))) for form in FORMS]
    assert difference(found[0], plain) > 0.01
    for other in found[1:]:
        assert torch.equal(other, found[0])
    off = latent_of(server, server.run(with_lora(graph, "peft.safetensors", 0.0)))
    assert torch.equal(off, plain)


def test_an_adapter_adds_what_it_says(server, random_model, random_folder, loras, tmp_path):
    """The same picture from a checkpoint whose weights have the adapter merged in."""
    merged = load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    state = adapter(random_folder, "peft")
    for layer in LAYERS:
        down, up = (state[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
        merged[f"{layer}.weight"] += 0.7 * up @ down
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(merged, folder / "merged.safetensors")
    graph = saving_latent(text_to_image(random_model), plan=False)
    patched = latent_of(server, server.run(with_lora(graph, "diffusers.safetensors", 0.7)))
    assert difference(latent_of(server, server.run(with_file(graph, "merged.safetensors"))), patched) < 1e-3


def test_keys_that_fit_nothing_are_listed_and_a_foreign_file_refused(server, random_model, loras):
    graph = saving_latent(text_to_image(random_model), plan=False)
    text = server.run(with_lora(graph, "extra.safetensors"))["lora"]["text"][0]
    assert text == "extra.safetensors: 1 of 7 keys fit no layer of GLM-Image: transformer.layers.9.lora_A.weight"
    with pytest.raises(PromptError, match="foreign.safetensors holds nothing for the GLM-Image decoder") as error:
        server.run(with_lora(graph, "foreign.safetensors"))
    assert error.value.node == "lora"


# Single files and small dtypes --------------------------------------------------------------------------------------


def with_file(graph, file: str, dtype: str = "auto"):
    graph = graph | {
        "decoder": node(
            "GLMImageDecoderLoader", model="random/model_index.json", dtype=dtype, device="auto", weights=file
        )
    }
    return change(graph, sample_model=["decoder", 0])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_small_weights_from_one_file_draw_a_similar_picture(server, random_model, random_folder, name):
    """fp8 is stored only: layers compute in the device's dtype."""
    state = load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    small = {f"model.diffusion_model.{key}": tensor.to(getattr(torch, name)) for key, tensor in state.items()}
    save_file(small, folder / f"{name}.safetensors")
    graph = saving_latent(text_to_image(random_model, sample_steps=4), plan=False)
    exact = latent_of(server, server.run(graph))
    found = latent_of(server, server.run(with_file(graph, f"{name}.safetensors")))
    assert torch.isfinite(found).all()
    assert 1e-5 < (found - exact).abs().mean() / exact.abs().mean() < {"bfloat16": 0.05}.get(name, 0.6)


def test_a_file_of_another_model_is_named(server, random_model, references):
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "wide.safetensors"
    if not link.exists():
        link.symlink_to(references("wide")[0] / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(PromptError, match="wide.safetensors") as error:
        server.run(with_file(saving_latent(text_to_image(random_model), plan=False), "wide.safetensors"))
    assert error.value.node == "decoder"
    assert "\n" not in error.value.text


# Other models beside ours -------------------------------------------------------------------------------------------


def esrgan(width: int = 8, growth: int = 32) -> dict[str, torch.Tensor]:
    """Random weights of the smallest ESRGAN that upscales twice."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv_first": (width, 12), "conv_body": (width, width), "conv_up1": (width, width)}
    shapes |= {"conv_up2": (width, width), "conv_hr": (width, width), "conv_last": (3, width)}
    for block in range(1, 4):
        for i in range(1, 6):
            out = width if i == 5 else growth
            shapes[f"body.0.rdb{block}.conv{i}"] = (out, width + growth * (i - 1))
    state = {}
    for name, (out, inside) in shapes.items():
        state[f"{name}.weight"] = 0.1 * torch.randn(out, inside, 3, 3, generator=generator)
        state[f"{name}.bias"] = torch.zeros(out)
    return state


def test_another_models_nodes_work_in_the_same_graph(server, random_model):
    """An upscaler's weights before the planner and behind the decoder, and another model's latent."""
    folder = server.base / "models" / "upscale_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(esrgan(), folder / "tiny.safetensors")
    graph = text_to_image(random_model, 96, 64)
    graph["latent"] = node("EmptySD3LatentImage", width=96, height=64, batch_size=1)
    graph["zero_star"] = node("CFGZeroStar", model=["load", 1])
    graph["sample"] = sampler(model=["zero_star", 0])
    graph["upscaler"] = node("UpscaleModelLoader", model_name="tiny.safetensors")
    graph["larger"] = node("ImageUpscaleWithModel", upscale_model=["upscaler", 0], image=["image", 0])
    graph["size"] = node("GetImageSize", image=["larger", 0])
    graph["width"] = node("PreviewAny", source=["size", 0])
    graph["save"]["inputs"]["images"] = ["larger", 0]
    outputs = server.run(graph)
    assert outputs["width"]["text"] == ["192"]


def test_other_nodes_do_not_take_our_sockets_by_mistake(server, random_model):
    graph = saving_latent(text_to_image(random_model), plan=False)
    with pytest.raises(PromptError, match="received_type|mismatch|GLM_IMAGE_PLAN"):
        server.run(change(graph, sample_positive=["plan", 0]))


def test_two_models_in_one_graph_keep_apart(server, random_model, other_model):
    graph = saving_latent(text_to_image(random_model))
    second = saving_latent(text_to_image(other_model))
    for name, entry in second.items():
        inputs = {key: [f"b_{v[0]}", v[1]] if isinstance(v, list) else v for key, v in entry["inputs"].items()}
        graph[f"b_{name}"] = node(entry["class_type"], **inputs)
    outputs = server.run(graph)
    one, two = Plan.load(server.files(outputs, "plans", "plans")[0]), plan_of(server, outputs, "b_plans")
    assert (one.codebook_size, two.codebook_size) == (64, 100)
    assert difference(latent_of(server, outputs), latent_of(server, outputs, "b_keep")) > 0.1
