"""The command line as its user meets it: files, metadata, one-line errors, exit codes."""

import json
import os
import subprocess
import sys
from functools import cached_property

import numpy as np
import pytest
import torch
from comfyui_glm_image.cli import arguments as shared_arguments
from comfyui_glm_image.cli.main import COMMANDS, main
from comfyui_glm_image.pipeline import GlmImage, Plan
from comfyui_glm_image.pipeline.denoising.cfg import CfgPasses
from comfyui_glm_image.tests.conftest import ROOT
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

SIZE = ["--width", "64", "--height", "32"]


@pytest.fixture
def run(references, tmp_path, capsys, monkeypatch):
    """Runs a command in an empty folder on a random checkpoint -> (exit code, output, errors)."""
    folder = references("plain")[0]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # what making the checkpoint printed

    def run(command, *words, model=str(folder)):
        device = [] if "--device" in words else ["--device", "cpu"]
        code = main([command, *words, "--model", model, *device])
        return code, *capsys.readouterr()

    return run


def test_generate_writes_a_picture_with_everything_to_draw_it_again(run, tmp_path):
    code, out, err = run("generate", "a 'HI' sign", "-o", "a/out.png", *SIZE, "--steps", "2", "--seed", "3")
    assert (code, out) == (0, "a/out.png\n")
    assert len(err.splitlines()) == 1 and "64x32 px was never trained" in err
    image = Image.open(tmp_path / "a/out.png")
    assert image.size == (64, 32)
    assert image.text["prompt"] == "a 'HI' sign"
    wanted = {"seed": "3", "plan_seed": "3", "plan_rows": "1", "size": "64x32", "steps": "2", "guidance_scale": "1.5"}
    assert wanted.items() <= image.text.items()
    assert image.text["model"]


def test_a_saved_plan_draws_the_picture_that_generate_draws(run, tmp_path):
    run("generate", "a cat", "-o", "whole.png", *SIZE, "--steps", "2", "--seed", "4")
    assert run("plan", "a cat", "-o", "cat.safetensors", *SIZE, "--seed", "4")[0] == 0
    assert Plan.load("cat.safetensors").seed == 4
    assert run("generate", "--plan", "cat.safetensors", "-o", "parts.png", "--steps", "2", "--seed", "4")[0] == 0
    assert Image.open("whole.png").tobytes() == Image.open("parts.png").tobytes()


@pytest.fixture
def lora(references):
    """The name of a LoRA file for the checkpoint of `run`, in the folder where it runs."""
    layer = "model.language_model.layers.2.mlp.down_proj"
    with safe_open(references("plain")[0] / "vision_language_encoder" / "model.safetensors", "pt") as file:
        out, width = file.get_slice(f"{layer}.weight").get_shape()
    generator = torch.Generator().manual_seed(1)
    up, down = torch.randn(out, 3, generator=generator), torch.randn(3, width, generator=generator)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, "style.safetensors")
    return "style.safetensors"


def test_planner_loras_change_plan_and_image_which_note_them(run, lora):
    for name, loras in {"plain": [], "off": [lora + ":0"], "on": [lora], "both": [lora, lora + ":-0.5"]}.items():
        words = [word for each in loras for word in ("--planner-lora", each)]
        assert run("plan", "a cat", "-o", f"{name}.safetensors", *SIZE, *words)[0] == 0
    plans = {name: Plan.load(f"{name}.safetensors") for name in ("plain", "off", "on", "both")}
    tokens = {name: plan.preview_token_ids.tolist() for name, plan in plans.items()}
    assert tokens["plain"] == tokens["off"]
    assert tokens["plain"] != tokens["on"] != tokens["both"] != tokens["plain"]
    noted = {name: [(used.name, used.strength) for used in plan.planner_loras] for name, plan in plans.items()}
    assert noted == {"plain": [], "off": [], "on": [(lora, 1)], "both": [(lora, 1), (lora, -0.5)]}
    assert run("generate", "a cat", "-o", "on.png", *SIZE, "--steps", "2", "--planner-lora", lora)[0] == 0
    (entry,) = json.loads(Image.open("on.png").text["planner_loras"])
    assert entry == vars(plans["on"].planner_loras[0])


@pytest.fixture
def decoder_lora(references):
    """The same for the decoder, as diffusers names its parts."""
    layer, generator = "transformer_blocks.1.ff.net.0.proj", torch.Generator().manual_seed(1)
    with safe_open(references("plain")[0] / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        out, width = file.get_slice(f"{layer}.weight").get_shape()
    up, down = torch.randn(out, 3, generator=generator), torch.randn(3, width, generator=generator)
    save_file(
        {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}, "look.safetensors"
    )
    return "look.safetensors"


def test_loras_of_the_decoder_change_the_image_which_notes_them(run, decoder_lora):
    """With whole weights and with 8 bits, beside whose codes they stand."""
    assert run("plan", "a cat", "-o", "cat.safetensors", *SIZE)[0] == 0
    for form in ("full", "w8"):
        images = {}
        for name, strength in {"plain": None, "off": 0, "on": 1, "more": 2}.items():
            words = [] if strength is None else ["--lora", f"{decoder_lora}:{strength}"]
            words += ["--plan", "cat.safetensors", "-o", f"{name}.png", "--steps", "2", "--decoder-weights", form]
            assert run("generate", *words)[0] == 0
            images[name] = Image.open(f"{name}.png")
        assert images["plain"].tobytes() == images["off"].tobytes()
        assert images["plain"].tobytes() != images["on"].tobytes() != images["more"].tobytes()
        assert "loras" not in images["off"].text
        (entry,) = json.loads(images["more"].text["loras"])
        assert (entry["name"], entry["strength"]) == (decoder_lora, 2)


def test_a_wrong_lora_of_the_decoder_is_named(run, lora, decoder_lora):
    code, _, err = run("generate", "x", *SIZE, "--lora", lora, model="nowhere")
    assert code == 1 and "decoder LoRA 'style.safetensors' is made for the planner" in err and err.count("\n") == 1
    code, _, err = run("generate", "x", "--server", "u", "--lora", decoder_lora)
    assert code == 1 and "leave out --lora" in err


@pytest.mark.parametrize("command", ["generate", "plan", "eval"])
@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere.safetensors", "'nowhere.safetensors' does not exist"),
        ("style.safetensors:nan", "strength nan is not accepted"),
        ("C:style.bin", "'C:style.bin' does not exist"),
        ("decoder.safetensors", "is made for the decoder"),
        ("cut.safetensors:2", "is not a whole safetensors file"),
    ],
)
def test_a_wrong_planner_lora_is_named_before_the_checkpoint_is_looked_for(run, tmp_path, command, name, message):
    save_file({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 8)}, "decoder.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40")
    words = ["-o", "out", "--limit", "1"] if command == "eval" else ["x", *SIZE]
    code, _, err = run(command, *words, "--planner-lora", name, model="nowhere")
    assert code == 1 and message in err and err.count("\n") == 1


def test_a_planner_lora_is_refused_where_nothing_is_planned_here(run, lora):
    words = ["--planner-lora", lora]
    for given in (["generate", "x", "--server", "u"], ["generate", "--plan", "p"], ["plan", "x", "--server", "u"]):
        code, _, err = run(*given, *words)
        assert code == 1 and "leave out --planner-lora" in err


@pytest.mark.parametrize("option, name", [("planner_lora", "planner_top"), ("lora", "digits")])
def test_a_benchmark_is_not_gone_on_with_by_another_lora(run, tmp_path, option, name):
    (tmp_path / "out").mkdir()
    before = {"model": "small", "steps": 50, "cfg": 1.5, "seed": 0, "ablation": "none", "device": "cpu"}
    (tmp_path / "out" / "settings.json").write_text(json.dumps(before))
    file = ROOT / "checkpoints" / "loras" / f"glm_image_small_{name}.safetensors"
    code, _, err = run("eval", "-o", "out", "--limit", "1", f"--{option.replace('_', '-')}", str(file), model="small")
    assert code == 1 and f"{option} None, now '{file}:1 " in err


def test_guidance_as_one_batch_draws_the_same_picture(run, tmp_path, monkeypatch):
    asked, plain = [], CfgPasses.joined.func
    counting = cached_property(lambda passes: asked.append(passes) or plain(passes))
    counting.__set_name__(CfgPasses, "joined")
    monkeypatch.setattr(CfgPasses, "joined", counting)
    for way in ("batched", "sequential"):
        given = ("a 'HI' sign", "-o", f"{way}.png", *SIZE, "--steps", "2", "--guidance-batching", way)
        assert run("generate", *given)[0] == 0 and len(asked) == 1
    images = [np.asarray(Image.open(f"{way}.png")).astype(int) for way in ("batched", "sequential")]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_several_images_get_numbers(run, tmp_path):
    assert run("generate", "a cat", *SIZE, "--steps", "1", "--count", "2")[1] == "out_0.png\nout_1.png\n"


def test_references_are_read_from_files(run, tmp_path):
    Image.new("RGBA", (50, 40), "red").save("red.png")
    assert run("generate", "edit it", *SIZE, "--steps", "1", "--image", "red.png", "--image", "red.png")[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "x", "--width", "100"], "width 100 is not a multiple of 32; use 96 or 128"),
        (["generate", "x", "--width", "9999999"], "width 9999999 is out of range"),
        (["generate", ""], "the prompt is empty"),
        (["generate"], "give a prompt, or a plan with --plan"),
        (["generate", "x", "--plan", "p"], "give a prompt, or a plan with --plan, and not both"),
        (["generate", "--plan", "nowhere.safetensors"], "plan file nowhere.safetensors does not exist"),
        (["generate", "x", "-o", "image.gif"], "output image.gif must end in .png"),
        (["generate", "x", "--steps", "0"], "steps 0 is not usable"),
        (["generate", "x", "--step-cache", "2"], "step cache 2.0 is not accepted"),
        (["generate", "x", "--step-cache", "0.1", "--guidance-batching", "batched"], "use guidance batching auto or"),
        (["generate", "x", "--image", "nowhere.png"], "image nowhere.png does not exist"),
        (["generate", "x", "--device", "tpu9"], "device 'tpu9' is not known; use auto, cpu, cuda"),
        (["generate", "x", "--dtype", "int3"], "dtype 'int3' is not known"),
        (["plan", "x", "-o", "plan.txt"], "output plan.txt must end in .safetensors"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run, tmp_path, arguments, message):
    code, out, err = run(*arguments)
    assert code == 1
    assert message in err and err.count("\n") == 1 and err.startswith("glm-image: ")
    assert not any(tmp_path.iterdir())


def test_a_broken_reference_image_is_named(run, tmp_path):
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 20)
    code, _, err = run("generate", "x", *SIZE, "--image", "half.png")
    assert code == 1 and "image half.png cannot be read" in err


def test_a_model_that_does_not_exist_is_named(run):
    code, _, err = run("generate", "x", model="nowhere")
    assert code == 1 and "'nowhere' does not exist" in err


def test_wrong_arguments_exit_with_2(run):
    for arguments in (["generate", "x", "--steps", "many"], ["nothing"], []):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


def test_debug_shows_the_traceback(run):
    with pytest.raises(Exception, match="width 100"):
        run("generate", "x", "--width", "100", "--debug")


def test_an_interrupt_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    code, _, err = run("generate", "x", *SIZE, "--steps", "1")
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert not any(tmp_path.iterdir())


def test_running_out_of_memory_is_one_line(run, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    monkeypatch.setattr(GlmImage, "make_plan", full)
    code, _, err = run("generate", "x", *SIZE)
    assert code == 1 and "out of memory; use a smaller image" in err.splitlines()[-1]


def test_every_command_has_a_module_with_arguments(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"glm-image {name}" in capsys.readouterr().out


LAYOUT = "title: OPEN @ top 40%\nbody: TEA @ bottom 40%\n"


def test_a_layout_goes_into_prompt_plan_and_image(run, tmp_path):
    (tmp_path / "page.txt").write_text(LAYOUT)
    size = ("--width", "192", "--height", "96")
    placed = ("--layout", "page.txt", "--layout-mode", "force")
    assert run("plan", "a poster", "--layout", "page.txt", *size, "-o", "p.safetensors")[0] == 0
    assert Plan.load(tmp_path / "p.safetensors").prompts == [
        'a poster. It shows 2 texts: the title "OPEN" at the top (5% to 95% across, 0% to 40% down); '
        'the body "TEA" at the bottom (5% to 95% across, 60% to 100% down).'
    ]
    code, out, err = run(
        "generate", "a poster", *size, "--steps", "1", *placed, "--layout-prompt", "none", "-o", "a.png"
    )
    assert (code, out) == (0, "a.png\n"), err
    assert Image.open(tmp_path / "a.png").text["prompt"] == "a poster"
    assert run("generate", "--plan", "p.safetensors", "--steps", "1", "--layout", "page.txt", "-o", "b.png")[0] == 0


BAD_LAYOUTS = [
    (("--layout", "missing.txt"), "layout missing.txt does not exist"),
    (("--layout", "empty.txt"), "the layout has no regions"),
    (("--layout", "page.txt", "--layout-attention", "2"), "layout attention 2.0 is not accepted"),
    (("--layout", "page.txt", "--layout-strength", "nan"), "strength nan"),
    (("--layout", "page.txt", "--layout-language", "latin"), "use english or chinese"),
    (("--layout", "page.txt", "--server", "http://127.0.0.1:9"), "servers take prompts, not layouts"),
    (("--layout", "page.txt", "--text", "OTHER"), "is not among the glyph texts"),
]


@pytest.mark.parametrize("given, message", BAD_LAYOUTS)
def test_wrong_layouts_are_one_line_and_load_nothing(run, tmp_path, monkeypatch, given, message):
    monkeypatch.setattr(GlmImage, "make_plan", lambda *_, **__: pytest.fail("planned"))
    (tmp_path / "page.txt").write_text(LAYOUT)
    (tmp_path / "empty.txt").write_text("")
    code, _, err = run("generate", "a poster", "--width", "192", "--height", "96", *given)
    assert code == 1 and message in err and err.count("\n") == 1


BAD_OPTIONS = [
    (("--steps", "0"), "steps 0 is not usable"),
    (("--cfg", "0.5"), "guidance_scale 0.5 is not accepted"),
    (("--guidance-interval", "1", "0"), "guidance interval 1.0 to 0.0 is not accepted"),
    (("--step-cache", "2"), "step cache 2.0 is not accepted"),
    (("--seed", str(2**64)), "is not accepted; use a whole number"),
    (("--temperature", "nan"), "temperature nan is not accepted"),
]


@pytest.mark.parametrize("given, message", BAD_OPTIONS)
def test_wrong_options_are_refused_before_the_checkpoint_is_opened(run, monkeypatch, given, message):
    monkeypatch.setattr(shared_arguments, "open_model", lambda *_: pytest.fail("opened"))
    code, _, err = run("generate", "x", *SIZE, *given)
    assert code == 1 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["none/\0.png", "file/out.png", "n" * 300 + ".png", "link.png"])
def test_a_file_that_cannot_be_written_is_found_before_anything_is_loaded(tmp_path, capsys, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link.png").symlink_to("/dev/full")
    assert main(["generate", "a", "--model", "small", "-o", str(tmp_path / name)]) == 1
    output = capsys.readouterr()
    assert not output.out and output.err.startswith("glm-image: ") and len(output.err) < 300


def test_names_can_be_printed_on_a_terminal_of_ascii(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT / "tests")}
    code = "import conftest, sys; from comfyui_glm_image.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "plan", "“猫”", "--model", "small", "--width", "32", "--height", "32"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "猫.safetensors")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "猫.safetensors").exists() and done.stdout.isascii()


def test_small_is_the_bundled_checkpoint_everywhere(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert GlmImage.from_pretrained("small", device="cpu").checkpoint.name == "small"
    main(["doctor", "--model", "small", "--device", "cpu", "--width", "192", "--height", "96"])
    assert "small, 1 image of 192x96 px" in capsys.readouterr().out
