"""ComfyUI on an NPU: the real torch_npu in it, over the stand-in CANN runtime of tests/fake_cann.

Needs both environments: `make test-npu` makes the one, `make test-comfyui` the other.
"""

import functools
import importlib.util
import re

import numpy as np
import pytest
import torch
from comfyui_glm_image.pipeline.glm_image import GlmImage, to_pil
from comfyui_glm_image.tests.comfyui.conftest import with_other_pack
from comfyui_glm_image.tests.comfyui.graphs import change, custom_sampler, node, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.host_memory import HostMemory, file_bytes, larger_checkpoint
from comfyui_glm_image.tests.comfyui.server import PromptError, Server
from comfyui_glm_image.tests.comfyui.test_devices import PARTS, RELEASE, devices, text_of, with_devices
from comfyui_glm_image.tests.comfyui.test_layout import decoding
from comfyui_glm_image.tests.comfyui.test_planner_lora import graph_with, save_loras
from comfyui_glm_image.tests.comfyui.test_sampling import TOLERANCE, difference, drawn, latent_of, plan_of
from comfyui_glm_image.tools.comfyui import ROOT
from PIL import Image

CANN = ROOT / "tests" / "fake_cann"
PACKAGES = ("torch_npu", "torch_npu-2.13.0.dist-info", "torchnpugen")
# What ComfyUI keeps free for computing (0.8 GiB and 400 MB) and a little: less than the random planner's 2.4 MB.
SHORT_OF_MEMORY_MB = 1221


@pytest.fixture(scope="module")
def start(install, random_folder, tmp_path_factory):
    """Starts a ComfyUI that sees NPUs of a kind, with so much memory each; one for each choice."""
    found = list((ROOT / ".venv-npu" / "2.13").glob("lib/python*/site-packages"))
    if not found or not (CANN / "build" / "lib").is_dir():
        pytest.skip("no torch_npu and stand-in CANN; run NPU_PAIR=2.13 make test-npu first")
    site = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        (site / name).symlink_to(found[0] / name, target_is_directory=True)
    home, running = CANN / "build", []

    @functools.cache
    def start(memory_mb: int, cards: int = 1, soc: str = "Ascend910B3", *arguments: str, strict: bool = True) -> Server:
        environment = {
            "ASCEND_HOME_PATH": str(home),
            "ASCEND_OPP_PATH": str(home / "opp"),
            "LD_LIBRARY_PATH": str(home / "lib"),
            "PYTHONPATH": f"{CANN / 'python'}:{site}",
            **npu_settings(),
            "FAKE_CANN_DEVICES": str(cards),
            "FAKE_CANN_SOC": soc,
            "FAKE_CANN_MEMORY_MB": str(memory_mb),
            "TORCH_NPU_FALLBACK_CPU_DISABLE": "1" if strict else "0",
        }
        running.append(Server(install, with_other_pack(tmp_path_factory.mktemp("npu")), environment, arguments))
        running[-1].add_model("random", random_folder)
        return running[-1]

    yield start
    for server in running:
        server.stop()


def npu_settings() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("npu_run", ROOT / "tests" / "npu" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SETTINGS


@pytest.fixture(scope="module")
def graph():
    exact = {"load_planner_dtype": "fp32", "load_decoder_dtype": "fp32"}
    return saving_latent(text_to_image("random/model_index.json", **exact) | custom_sampler(6))


def test_an_npu_plans_by_graph_and_draws_what_the_pipeline_draws(start, graph, pipeline):
    server = start(65536)
    assert server.options("GLMImageLoader", "device") == ["auto", "npu:0", "cpu"]
    outputs = server.run(graph)
    plan = plan_of(server, outputs)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan.prior_token_ids_d32, wanted.prior_token_ids_d32)
    assert difference(latent_of(server, outputs), drawn(pipeline, wanted, 6)) < TOLERANCE
    assert "planning without a graph" not in server.log
    assert "planning goes on without a graph" not in server.log


def test_an_npu_too_small_for_the_planner_loads_a_part_and_makes_room_for_the_decoder(start, graph, pipeline):
    server = start(SHORT_OF_MEMORY_MB)
    outputs = server.run(graph)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan_of(server, outputs).prior_token_ids_d32, wanted.prior_token_ids_d32)
    assert difference(latent_of(server, outputs), drawn(pipeline, wanted, 6)) < TOLERANCE
    planner, decoder = server.log.index("Requested to load ManagedPlanner"), server.log.index("to load GlmImageModel")
    assert "loaded partially" in server.log[planner:decoder]
    assert "Unloaded partially" in server.log[decoder:]


@pytest.mark.parametrize("memory_mb, bits", [(65536, 8), (SHORT_OF_MEMORY_MB, 32)])
def test_loras_of_the_planner_come_to_an_npu_and_leave_it(start, random_folder, eight_bits, memory_mb, bits):
    """Biases and what stands beside codes are attributes, which travel with their layers; then the planner is plain."""
    server, folder = start(memory_mb), random_folder if bits == 32 else eight_bits
    home, pairs = server.base / "models" / "loras", [("bias", 1.0), ("dora", -0.5)]
    save_loras(home, random_folder)
    graph = graph_with(server.add_model(f"random-{bits}", folder), *pairs)
    outputs = server.run(change(graph, load_planner_dtype="fp32"))
    plain = server.run(
        change({name: graph[name] for name in ("load", "plan", "keep")}, load_planner_dtype="fp32", plan_seed=4)
    )
    model = GlmImage.from_pretrained(folder, device="cpu")

    def wanted(seed: int = 3) -> torch.Tensor:
        return model.plan("a red sign that says 'OPEN'", 64, 96, seed=seed).preview_token_ids

    assert torch.equal(plan_of(server, outputs, "keep").preview_token_ids, wanted())
    assert torch.equal(plan_of(server, plain, "keep").preview_token_ids, wanted(4))
    model.use_planner_loras(*((home / f"{kind}.safetensors", strength) for kind, strength in pairs))
    assert torch.equal(plan_of(server, outputs, "kept").preview_token_ids, wanted())


def test_an_npu_draws_in_bfloat16_by_default(start):
    server = start(65536)
    outputs = server.run(saving_latent(text_to_image("random/model_index.json")))
    assert torch.isfinite(latent_of(server, outputs)).all()
    assert "model weight dtype torch.bfloat16" in server.log
    assert "VAE load device: npu:0, offload device: cpu, dtype: torch.bfloat16" in server.log


@pytest.fixture(scope="module")
def fast(start):
    """A server with --fast, and with the CPU doing what an NPU has no kernel for, as torch_npu does by default."""
    return start(65536, 1, "Ascend910B3", "--fast", strict=False)


def test_fast_changes_nothing_on_an_npu(fast, graph, pipeline):
    """It spoiled the VAE's images of core's models on a 910B."""
    graph = dict(graph, image=node("VAEDecode", samples=["sample", 0], vae=["load", 3]))
    graph["save"] = node("SaveImage", images=["image", 0], filename_prefix="fast")
    outputs = fast.run(graph)
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan_of(fast, outputs).prior_token_ids_d32, wanted.prior_token_ids_d32)
    latents = pipeline.denoise(wanted, 6, 1.5, 5)
    assert difference(latent_of(fast, outputs), pipeline.vae.denormalise(latents)) < TOLERANCE
    (path,), (exact,) = fast.files(outputs, "save"), to_pil(pipeline.decode(latents))
    off = np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(exact).astype(int))
    assert off.max() <= 12 and off.mean() < 1  # the VAE of Load GLM-Image computes in bfloat16


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_uni_pc_draws_what_it_draws_on_the_cpu(fast, server, random_model, name):
    """It gave black images of core's models there; an NPU has no kernel for its small systems of equations."""
    exact = {"load_planner_dtype": "fp32", "load_decoder_dtype": "fp32"}
    graph = change(saving_latent(text_to_image(random_model, **exact)), sample_sampler_name=name)
    found = [latent_of(where, where.run(graph)) for where in (fast, server)]
    assert torch.isfinite(found[0]).all() and difference(*found) < TOLERANCE


SPLITS = {
    "planner first": ("npu:0", "npu:1", "npu:1", "npu:1"),
    "planner second": ("npu:1", "npu:0", "cpu", "npu:0"),
}


@pytest.fixture(scope="module")
def two_cards(start):
    return start(65536, cards=2)


@pytest.mark.parametrize("where", SPLITS.values(), ids=SPLITS)
def test_parts_on_two_cards_draw_what_the_cpu_draws(two_cards, graph, pipeline, where):
    """The stand-in refuses every operator whose operands are on two cards."""
    chosen = with_devices(change(graph, load_device="cpu"), **dict(zip(PARTS, where)))
    parts = {name: ["load", i] for i, name in enumerate(("planner", "model", "glyph_encoder", "vae"))}
    chosen["parts"] = node("WhereParts", **parts)
    chosen["where"] = node("PreviewAny", source=["parts", 0])
    chosen["image"] = node("VAEDecode", samples=["sample", 0], vae=["load", 3])
    chosen["save"] = node("SaveImage", images=["image", 0], filename_prefix="two_cards")
    start = len(two_cards.log)
    outputs = two_cards.run(chosen)
    assert text_of(outputs, "where") == " ".join(where)
    for part, device in zip(("planner", "decoder", "glyph encoder", "VAE"), where):
        assert any(
            line.split()[: part.count(" ") + 2] == [*part.split(), device] for line in text_of(outputs).splitlines()
        )
    assert "without a graph" not in two_cards.log[start:]
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, seed=3, temperature=0.9, top_p=0.75)
    assert torch.equal(plan_of(two_cards, outputs).prior_token_ids_d32, wanted.prior_token_ids_d32)
    latents = pipeline.denoise(wanted, 6, 1.5, 5)
    assert difference(latent_of(two_cards, outputs), pipeline.vae.denormalise(latents)) < TOLERANCE
    (path,), (exact,) = two_cards.files(outputs, "save"), to_pil(pipeline.decode(latents))
    off = np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(exact).astype(int))
    assert off.max() <= 12 and off.mean() < 1  # the VAE of Load GLM-Image computes in bfloat16


APART = dict(zip(PARTS, ("npu:1", "npu:0", "npu:1", "cpu")))


def test_references_cross_from_card_to_card(two_cards, graph, pipeline):
    graph = with_devices(graph, **APART)
    graph["picture"] = node("EmptyImage", width=128, height=96, batch_size=1, color=0x3366CC)
    outputs = two_cards.run(change(graph, plan_reference_1=["picture", 0], text_vae=["load", 3]))
    plan, picture = plan_of(two_cards, outputs), Image.new("RGB", (128, 96), (0x33, 0x66, 0xCC))
    wanted = pipeline.plan("a red sign that says 'OPEN'", 64, 96, [picture], 3, 0.9, 0.75)
    assert torch.equal(plan.prior_token_ids_d32, wanted.prior_token_ids_d32)
    assert difference(latent_of(two_cards, outputs), drawn(pipeline, wanted, 6)) < TOLERANCE


def test_a_layout_guides_planner_and_decoder_on_two_cards_as_on_the_cpu(two_cards):
    guided = decoding("random/model_index.json", 0.5, level=0.2)
    guided = change(guided, guide_mode="force", text_plan=["guided", 0], load_decoder_dtype="fp32")
    guided = change(guided, load_planner_dtype="fp32")
    split, alone = (two_cards.run(with_devices(guided, **where)) for where in (APART, dict.fromkeys(PARTS, "cpu")))
    plans = [plan_of(two_cards, outputs, "save_guided").prior_token_ids_d32 for outputs in (split, alone)]
    assert torch.equal(*plans)
    assert difference(*(latent_of(two_cards, outputs, "latent") for outputs in (split, alone))) < TOLERANCE


def test_two_cards_are_offered_and_a_third_is_refused(two_cards):
    assert two_cards.options("GLMImageDevices", "vae_device") == ["auto", "npu:0", "npu:1", "cpu"]
    with pytest.raises(PromptError, match="npu:2' is not in the list; choose from auto, npu:0, npu:1, cpu"):
        two_cards.run({"devices": devices(RELEASE, vae_device="npu:2")})


def test_an_npu_too_small_for_the_release_is_told_before_anything_is_loaded(start):
    server = start(SHORT_OF_MEMORY_MB)
    loaded = server.log.count("Requested to load")
    lines = text_of(server.run({"devices": devices(RELEASE, 1024, 1024)})).splitlines()
    assert lines[0] == "GLM-Image, 1 image of 1024x1024 px: DOES NOT FIT"
    assert "npu:0 lacks " in lines[1]
    assert lines[2] == "Try w8 weights, another device for a component"
    assert "stream from host memory" in lines[3]
    assert server.log.count("Requested to load") == loaded


def test_an_npu_draws_with_8_bits_of_which_some_wait_in_host_memory(start, graph):
    small = {"load_planner_dtype": "w8", "load_decoder_dtype": "w8"}
    drawn = [start(memory).run(change(graph, **small)) for memory in (65536, SHORT_OF_MEMORY_MB)]
    servers = [start(memory) for memory in (65536, SHORT_OF_MEMORY_MB)]
    plans = [plan_of(server, outputs) for server, outputs in zip(servers, drawn)]
    assert torch.equal(plans[0].prior_token_ids_d32, plans[1].prior_token_ids_d32)
    assert difference(*(latent_of(server, outputs) for server, outputs in zip(servers, drawn))) < TOLERANCE


def test_fp8_is_refused_on_an_npu_with_the_form_to_use(start, graph):
    with pytest.raises(PromptError, match="fp8_e4m3fn does not run on npu:0.*choose w8"):
        start(65536).run(change(graph, load_decoder_dtype="fp8_e4m3fn"))


@pytest.mark.parametrize("kind", ["VAE", "Planner", "Decoder", "GlyphEncoder"])
def test_a_chip_without_bfloat16_refuses_it(start, kind):
    inputs = {"model": "random/model_index.json", "device": "auto", "dtype": "bf16", "weights": "from the checkpoint"}
    if kind == "Planner":
        del inputs["weights"]
    graph = {"load": node(f"GLMImage{kind}Loader", **inputs), "show": node("PreviewAny", source=["load", 0])}
    with pytest.raises(PromptError, match=r"npu:0 \(310P\) has no bfloat16; use fp16, fp32 or auto"):
        start(65536, soc="Ascend310P3").run(graph)


@pytest.fixture(scope="module")
def larger(random_folder, tmp_path_factory):
    return larger_checkpoint(random_folder, tmp_path_factory.mktemp("larger") / "checkpoint")


@pytest.mark.parametrize("soc", ["Ascend910B3", "Ascend310P3"])
def test_weights_stay_in_their_files_while_models_come_and_go(start, larger, soc):
    """In bfloat16, as the files are, and in float16: opened, planned, drawn, unloaded, and all once more."""
    server, size = start(65536, soc=soc), file_bytes(larger)
    model = server.add_model("larger", larger)
    server.run(saving_latent(text_to_image("random/model_index.json", sample_steps=2)))  # imports, kernels
    server.unload()
    estimate = text_of(server.run({"devices": devices(model)}))
    assert sum(map(int, re.findall(r"peak on cpu: (\d+) MiB", estimate))) < 0.05 * size / 2**20
    memory = HostMemory(server.process.pid)
    for seed in (3, 4):
        outputs = server.run(saving_latent(text_to_image(model, sample_steps=1, plan_seed=seed)))
        loaded = memory.grown
        server.unload()
        print(f"{soc}: {loaded >> 20} MB, unloaded {memory.grown >> 20} MB, for {size >> 20} MB of weights")
        assert torch.isfinite(latent_of(server, outputs)).all()
        assert max(loaded, memory.grown) < 0.05 * size
