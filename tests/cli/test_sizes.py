"""How the command line chooses a size, and what it says about one that was never trained."""

import pytest
from comfyui_glm_image.cli import arguments
from comfyui_glm_image.cli.main import main
from comfyui_glm_image.pipeline.loading.checkpoint import BUNDLED
from PIL import Image


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """(width, height) that `generate` with these words would plan."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 360)).save("wide.png")

    def choose(*words, command="generate"):
        sizes = []

        def stop(args):
            choose_size(args)
            sizes.append((args.width, args.height))
            raise KeyboardInterrupt

        monkeypatch.setattr(arguments, "choose_size", stop)
        assert main([command, "a cat", *words]) == 130
        return sizes[0]

    choose_size = arguments.choose_size
    return choose


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], (1024, 1024)),
        (["--width", "1536"], (1536, 1024)),
        (["--aspect", "16:9"], (1824, 1024)),
        (["--aspect", "9:16"], (1024, 1824)),
        (["--image", "wide.png"], (1376, 768)),  # the reference's shape at about a megapixel
        (["--image", "wide.png", "--width", "1024"], (1024, 1024)),
        (["--image", "wide.png", "--width", "1024", "--height", "1024"], (1024, 1024)),
        (["--aspect", "2:1", "--model", str(BUNDLED)], (128, 64)),
        (["--width", "1000", "--height", "1000", "--fit"], (1024, 1024)),
    ],
)
def test_the_size_of_an_image(chosen, words, size):
    assert chosen(*words) == size


def test_the_demo_has_a_size_of_its_own_and_takes_another(chosen):
    assert chosen(command="demo") == (192, 96)
    assert chosen("--aspect", "1:4", command="demo") == (192, 256)


@pytest.mark.parametrize(("size", "said"), [("160", True), ("96", False)])
def test_a_size_that_was_never_trained_is_said_and_used(size, said, tmp_path, capsys):
    words = ["--model", "small", "--device", "cpu", "--width", "192", "--height", size]
    words += ["-o", str(tmp_path / "a.safetensors")]
    assert main(["plan", "a red sign", *words]) == 0
    assert ("was never trained" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--aspect", "16:9", "--width", "512"], "--aspect chooses the size"),
        (["--width", "100"], "width 100 is not a multiple of 32"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a cat", "--model", str(BUNDLED), "--device", "cpu", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_shape_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "a cat", "--aspect", "16x9"])
    assert "'16x9' is no shape" in capsys.readouterr().err


def test_an_image_off_the_grid_is_cut_back(tmp_path):
    path = tmp_path / "cut.png"
    words = ["--model", "small", "--device", "cpu", "--width", "190", "--height", "90", "--steps", "1", "--fit"]
    assert main(["generate", "a red sign", "-o", str(path), *words]) == 0
    image = Image.open(path)
    assert image.size == (190, 90) and image.text["size"] == "192x96"
