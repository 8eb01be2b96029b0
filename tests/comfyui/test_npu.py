"""ComfyUI on an NPU: the real torch_npu in it, over the stand-in CANN runtime of tests/fake_cann.

Needs both environments: `make test-npu` makes the one, `make test-comfyui` the other.
"""

import functools
import importlib.util

import pytest
import torch
from comfyui_glm_image.tests.comfyui.graphs import custom_sampler, saving_latent, text_to_image
from comfyui_glm_image.tests.comfyui.server import Server
from comfyui_glm_image.tests.comfyui.test_sampling import TOLERANCE, difference, drawn, latent_of, plan_of
from comfyui_glm_image.tools.comfyui import ROOT

CANN = ROOT / "tests" / "fake_cann"
PACKAGES = ("torch_npu", "torch_npu-2.13.0.dist-info", "torchnpugen")
# What ComfyUI keeps free for computing (0.8 GiB and 400 MB) and a little: less than the random planner's 2.4 MB.
SHORT_OF_MEMORY_MB = 1221


@pytest.fixture(scope="module")
def start(install, random_folder, tmp_path_factory):
    """Starts a ComfyUI that sees one Ascend910B3 with so much memory; one for each amount."""
    found = list((ROOT / ".venv-npu").glob("lib/python*/site-packages"))
    if not found or not (CANN / "build" / "lib").is_dir():
        pytest.skip("no torch_npu and stand-in CANN; run make test-npu first")
    site = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        (site / name).symlink_to(found[0] / name, target_is_directory=True)
    home, running = CANN / "build", []

    @functools.cache
    def start(memory_mb: int) -> Server:
        environment = {
            "ASCEND_HOME_PATH": str(home),
            "ASCEND_OPP_PATH": str(home / "opp"),
            "LD_LIBRARY_PATH": str(home / "lib"),
            "PYTHONPATH": f"{CANN / 'python'}:{site}",
            **npu_settings(),
            "FAKE_CANN_DEVICES": "1",
            "FAKE_CANN_MEMORY_MB": str(memory_mb),
        }
        running.append(Server(install, tmp_path_factory.mktemp("npu"), environment))
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


def test_an_npu_draws_in_bfloat16_by_default(start):
    server = start(65536)
    outputs = server.run(saving_latent(text_to_image("random/model_index.json")))
    assert torch.isfinite(latent_of(server, outputs)).all()
    assert "model weight dtype torch.bfloat16" in server.log
    assert "VAE load device: npu:0, offload device: cpu, dtype: torch.bfloat16" in server.log
