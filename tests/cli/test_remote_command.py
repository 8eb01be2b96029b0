"""`glm-image generate --server`: the command line on contract servers."""

import pytest
from comfyui_glm_image.cli import main as cli
from comfyui_glm_image.pipeline.plan import Plan
from comfyui_glm_image.tests.remote.contract import KEY, Contract, colour
from PIL import Image


@pytest.fixture
def serve(monkeypatch):
    running = []

    def start(engine, fault=None, **options):
        running.append(Contract(engine, fault, **options))
        monkeypatch.setenv("GLM_IMAGE_API_KEY", KEY)
        monkeypatch.setenv("GLM_IMAGE_API_KEY_SERVERS", running[-1].url)
        return running[-1]

    yield start
    for server in running:
        server.die()


def generate(server, output, *more):
    size = ["--width", "96", "--height", "64"]
    return cli.main(["generate", "a sign 'OPEN'", "-o", str(output), "--server", server.url, *size, *more])


def test_images_are_saved_with_their_settings_and_without_server_or_key(serve, tmp_path, capsys):
    server = serve("vllm-omni")
    assert generate(server, tmp_path / "a.png", "--count", "2", "--seed", "5", "--steps", "7", "--text", "24h") == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(tmp_path / f"a_{k}.png") for k in range(2)]
    assert "2 of 96x64 at" in output.err and "added to the prompt, which did not quote them: 24h" in output.err
    for k in range(2):
        with Image.open(tmp_path / f"a_{k}.png") as image:
            assert "received_as" not in image.text
            assert image.getpixel((0, 0)) == colour(5 + k)
            assert (image.text["seed"], image.text["engine"]) == (str(5 + k), "vllm-omni")
            assert server.url not in str(image.text)
    assert KEY not in output.out + output.err
    assert server.requests[0][1]["num_inference_steps"] == 7


def test_a_lossy_file_is_noted_in_the_image_that_is_saved(serve, tmp_path):
    assert generate(serve("sglang", "jpeg"), tmp_path / "a.png") == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["received_as"] == "JPEG"


def test_the_planner_of_the_checkpoint_at_hand_is_asked_for(serve, tmp_path):
    """The chat form has to be told the planner's settings, which are not the release's for the small checkpoint."""
    server = serve("vllm-omni")
    assert generate(server, tmp_path / "a.png", "--engine", "vllm-omni-chat", "--model", "small", "--seed", "3") == 0
    ((_, fields, _),) = server.requests
    planner, decoder = fields["sampling_params_list"]
    assert (planner["top_k"], planner["stop_token_ids"], planner["seed"]) == (640, [641], 3)
    assert decoder == {"num_inference_steps": 50, "guidance_scale": 1.5, "seed": 3}


def test_a_plan_of_a_server_is_saved_and_one_of_another_server_draws_it(serve, tmp_path, capsys):
    planner = serve("sglang-planner")
    file, size = tmp_path / "a.safetensors", ["--width", "96", "--height", "64", "--model", "small"]
    layout = tmp_path / "page.txt"
    layout.write_text("title: OPEN @ top 50%")
    words = ["a sign", "--seed", "5", "--count", "2", "--layout", str(layout), "--plan-rows", "2"]
    assert cli.main(["plan", *words, "-o", str(file), "--server", planner.url, *size]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(file)]
    assert "the server decides on --plan-rows: ignored" in said.err and "planned 2 in" in said.err
    assert "the layout reaches the server by the prompt alone" in said.err
    plan = Plan.load(file)
    assert (len(plan), plan.seed, plan.width, plan.height) == (2, 5, 96, 64)
    assert "OPEN" in plan.prompts[0]
    engine = serve("vllm-omni")
    more = ["-o", str(tmp_path / "a.png"), "--server", engine.url, "--seed", "9", "--parallel", "1"]
    assert cli.main(["generate", "--plan", str(file), *more]) == 0
    assert [effect.prior_token_ids for effect in engine.effects] == list(map(tuple, plan.prior_token_ids.tolist()))
    for row in range(2):
        with Image.open(tmp_path / f"a_{row}.png") as image:
            assert (image.text["prompt"], image.text["seed"]) == (plan.prompts[row], str(9 + row))


def test_references_of_the_command_line_are_sent(serve, tmp_path):
    server = serve("sglang", version="0.5.20")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "in.png")
    assert generate(server, tmp_path / "a.png", "--image", str(tmp_path / "in.png")) == 0
    assert [image.size for image in server.requests[0][2]] == [(40, 30)]


def test_settings_without_effect_are_named(serve, tmp_path, capsys):
    server = serve("zai")
    big = ["--width", "1280", "--height", "1280", "--engine", "zai", "--temperature", "0.5"]
    assert generate(server, tmp_path / "a.png", *big) == 0
    said = capsys.readouterr().err
    assert "the server decides on --temperature: ignored" in said
    assert "zai takes no steps, guidance, seed: ignored" in said
    assert "about $0.015, the limit is $0.100" in said


@pytest.mark.parametrize("option", ["--planner-weights=w8", "--decoder-weights=w4", "--plan-rows=2", "--device=cpu"])
def test_what_a_server_decides_on_when_it_plans_is_named(option, tmp_path, capsys):
    words = ["plan", "a", "--model", "small", "--width", "64", "--height", "64", "-o", str(tmp_path / "a.safetensors")]
    assert cli.main([*words, "--server", "http://127.0.0.1:9", option]) == 1
    assert f"the server decides on {option.split('=')[0]}: ignored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "more", "message"),
    [
        ("400", [], "answered 400: height is too large for this server"),
        (None, ["--plan", "x.safetensors"], "give a prompt, or a plan"),
        (None, ["--engine", "zai", "--max-cost", "0.01"], "more than the limit of $0.010"),
        (None, ["--image", "none.png"], "image none.png does not exist"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(serve, tmp_path, capsys, fault, more, message):
    assert generate(serve("vllm-omni", fault), tmp_path / "a.png", *more) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("glm-image: ") and message in last
    assert not list(tmp_path.iterdir())
