"""`glm-image generate --server`: the command line on contract servers."""

import pytest
from comfyui_glm_image.cli import main as cli
from comfyui_glm_image.tests.remote.contract import KEY, Contract, colour
from PIL import Image


@pytest.fixture
def serve(monkeypatch):
    running = []

    def start(engine, fault=None):
        running.append(Contract(engine, fault))
        monkeypatch.setenv("GLM_IMAGE_API_KEY", KEY)
        monkeypatch.setenv("GLM_IMAGE_API_KEY_SERVERS", running[-1].url)
        return running[-1]

    yield start
    for server in running:
        server.die()


def generate(server, output, *more):
    size = ["--width", "96", "--height", "64"]
    return cli.main(["generate", "a sign 'OPEN'", "-o", str(output), "--server", server.url, *size, *more])


def test_pictures_are_saved_with_their_settings_and_without_server_or_key(serve, tmp_path, capsys):
    server = serve("vllm-omni")
    assert generate(server, tmp_path / "a.png", "--count", "2", "--seed", "5", "--steps", "7", "--text", "24h") == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(tmp_path / f"a_{k}.png") for k in range(2)]
    assert "2 of 96x64 at" in output.err and "added to the prompt, which did not quote them: 24h" in output.err
    for k in range(2):
        with Image.open(tmp_path / f"a_{k}.png") as picture:
            assert picture.getpixel((0, 0)) == colour(5 + k)
            assert (picture.text["seed"], picture.text["engine"]) == (str(5 + k), "vllm-omni")
            assert server.url not in str(picture.text)
    assert KEY not in output.out + output.err
    assert server.requests[0][1]["num_inference_steps"] == 7


def test_references_of_the_command_line_are_sent(serve, tmp_path):
    server = serve("sglang")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(tmp_path / "in.png")
    assert generate(server, tmp_path / "a.png", "--image", str(tmp_path / "in.png")) == 0
    assert [picture.size for picture in server.requests[0][2]] == [(40, 30)]


def test_settings_without_effect_are_named(serve, tmp_path, capsys):
    server = serve("zai")
    big = ["--width", "1280", "--height", "1280", "--engine", "zai", "--temperature", "0.5"]
    assert generate(server, tmp_path / "a.png", *big) == 0
    said = capsys.readouterr().err
    assert "the server decides on --temperature: ignored" in said
    assert "zai takes no steps, guidance, seed: ignored" in said
    assert "about $0.015, the limit is $0.100" in said


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
