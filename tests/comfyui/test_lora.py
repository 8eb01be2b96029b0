"""LoRA on the decoder: keys of every trainer, strengths, and what fits nothing."""

import pytest
import torch
from comfyui_glm_image.pipeline import GlmImage
from comfyui_glm_image.tests.comfyui.graphs import change, node, saving_latent, text_to_image, with_file
from comfyui_glm_image.tests.comfyui.server import PromptError
from comfyui_glm_image.tests.comfyui.test_sampling import difference, latent_of
from comfyui_glm_image.training import lora_pictures
from comfyui_glm_image.training.lora.adapters import adapted_layers
from comfyui_glm_image.training.lora.pictures import read_folder
from comfyui_glm_image.training.lora.settings import LoraSettings
from comfyui_glm_image.training.lora.train import Run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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


TARGETS = ["to_q", "to_out.0", "ff.net.0.proj"]
KINDS = {
    "plain": {"lora_alpha": 16},
    "rslora": {"lora_alpha": 16, "use_rslora": True},
    "patterns": {
        "lora_alpha": 8,
        "rank_pattern": {"transformer_blocks.0.attn1.to_q": 2},
        "alpha_pattern": {"ff.net.0.proj": 3},
    },
    "dora": {"lora_alpha": 6, "use_dora": True},
    "bias": {"lora_alpha": 12, "lora_bias": True},
}


@pytest.fixture(scope="module")
def adapters(inside, random_folder, tmp_path_factory):
    """Adapters of every kind as `save_lora_adapter` writes them -> their folder, and the weights that peft merges."""
    peft, diffusers = pytest.importorskip("peft"), pytest.importorskip("diffusers")
    folder, merged = tmp_path_factory.mktemp("adapters"), {}
    for seed, (kind, settings) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        transformer = diffusers.GlmImageTransformer2DModel.from_pretrained(random_folder / "transformer")
        transformer.add_adapter(peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **settings))
        transformer.save_lora_adapter(folder, weight_name=f"{kind}.safetensors")
        transformer.fuse_lora()
        weights = transformer.state_dict().items()
        merged[kind] = {name.replace(".base_layer", ""): weight for name, weight in weights if "lora_" not in name}
    seen = inside("lora", random_folder, *(folder / f"{kind}.safetensors" for kind in KINDS))
    assert seen["unmatched"] == []
    return folder, merged


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_diffusers_counts_as_much_as_in_diffusers(adapters, random_folder, kind):
    """Every weight within 1e-5 of what peft merges."""
    folder, merged = adapters
    plain = load_file(random_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {name for name, weight in merged[kind].items() if not torch.equal(weight, plain[name])}
    for strength in (1.0, 0.6):
        found = load_file(folder / f"merged_{strength}_{kind}.safetensors")
        assert found.keys() == changed
        for name in changed:
            wanted = plain[name] + strength * (merged[kind][name] - plain[name])
            assert (found[name] - wanted).abs().max() < 1e-5, name


def test_comfyuis_own_loader_finds_the_layers_under_diffusers_names(server, random_model, loras):
    """The file has the header's alpha nowhere, so both loaders give the same image."""
    graph = saving_latent(text_to_image(random_model), plan=False)
    ours = latent_of(server, server.run(with_lora(graph, "diffusers.safetensors")))
    core = {"lora": node("LoraLoaderModelOnly", model=["load", 1], lora_name="peft.safetensors", strength_model=1.0)}
    assert torch.equal(latent_of(server, server.run(change(graph | core, sample_model=["lora", 0]))), ours)


def test_an_adapter_of_train_lora_counts_as_in_training_in_our_node_and_in_comfyuis_own(
    server, inside, random_folder, random_model, loras, tmp_path
):
    pytest.importorskip("peft")
    lora_pictures.write_top(tmp_path / "data", count=2)
    words = {"model": str(random_folder), "rank": 3, "alpha": 7.5, "targets": "all", "steps": 2, "lr": 0.05}
    settings = LoraSettings("decoder", tmp_path / "data", tmp_path / "run", device="cpu", **words)
    model = GlmImage.from_pretrained(random_folder, device="cpu", dtype=torch.float32)
    run = Run(settings, model, read_folder(settings.data), report=lambda _text: None)
    path = run.finish()
    assert inside("lora", random_folder, path)["unmatched"] == []
    for strength in (1.0, 0.6):
        found = load_file(path.with_name(f"merged_{strength}_{path.name}"))
        layers = adapted_layers(run.module)
        assert {f"{name}.weight" for name in layers} == found.keys()
        for name, layer in layers.items():
            wanted = layer.base_layer.weight + strength * layer.get_delta_weight("default")
            assert (found[f"{name}.weight"] - wanted).abs().max() < 0.01 * wanted.abs().max(), (
                name
            )  # the file has bfloat16
    (loras / "trained.safetensors").write_bytes(path.read_bytes())
    graph = saving_latent(text_to_image(random_model), plan=False)
    ours = latent_of(server, server.run(with_lora(graph, "trained.safetensors", 0.7)))
    core = {"lora": node("LoraLoaderModelOnly", model=["load", 1], lora_name="trained.safetensors", strength_model=0.7)}
    assert torch.equal(latent_of(server, server.run(change(graph | core, sample_model=["lora", 0]))), ours)
    assert difference(ours, latent_of(server, server.run(graph))) > 1e-3


def test_an_adapter_stands_beside_codes(inside, random_folder, tmp_path):
    """Twice at two strengths: every layer computes what it would with its numbers and the adapter added to them."""
    plain, files = adapter(random_folder, "peft"), {}
    ups = {key.removesuffix(".lora_B.weight"): up for key, up in plain.items() if "lora_B" in key}
    files["plain"] = plain
    files["bias"] = plain | {f"{layer}.lora_B.bias": up[:, 0] for layer, up in ups.items()}
    files["dora"] = plain | {f"{layer}.lora_magnitude_vector": 1 + up[:, 0].abs() for layer, up in ups.items()}
    for kind, state in files.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / f"{kind}.safetensors")
    found = inside("lora_on_codes", random_folder, *(tmp_path / f"{kind}.safetensors" for kind in files))
    for form in ("w8", "w4"):
        seen = found[form]
        assert seen["layers"] == [3, 3, 3] and len(seen["differences"]) == 9
        assert max(seen["differences"]) < 1e-4
        assert seen["bytes"][0] == 2 * 4 * sum(tensor.numel() for tensor in plain.values())  # float32, two adapters
        assert seen["restored"] and seen["attributes"] == 0


def test_nodes_put_an_adapter_beside_codes_and_take_it_back(server, random_model, loras):
    graph = change(saving_latent(text_to_image(random_model, sample_steps=2), plan=False), load_decoder_dtype="w8")
    core = {"lora": node("LoraLoaderModelOnly", model=["load", 1], lora_name="peft.safetensors", strength_model=1.0)}
    plain = latent_of(server, server.run(graph))
    ours = latent_of(server, server.run(with_lora(graph, "peft.safetensors")))
    assert torch.equal(latent_of(server, server.run(change(graph | core, sample_model=["lora", 0]))), ours)
    assert difference(ours, plain) > 0.01
    exact = latent_of(server, server.run(change(with_lora(graph, "peft.safetensors"), load_decoder_dtype="fp32")))
    assert difference(ours, exact) < 0.05
    assert torch.equal(latent_of(server, server.run(change(graph, sample_seed=5))), plain)


def test_what_cannot_stand_beside_codes_is_refused_by_name(server, random_model, random_folder, loras):
    names = {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)}
    layer = f"lora_unet_{LAYERS[0].replace('.', '_')}"
    save_file({f"{layer}.{name}": torch.ones(shape) for name, shape in names.items()}, loras / "loha.safetensors")
    graph = change(saving_latent(text_to_image(random_model), plan=False), load_decoder_dtype="w8")
    with pytest.raises(PromptError, match="to_q by loha, and layers of 8 or 4 bits take LoRA") as error:
        server.run(with_lora(graph, "loha.safetensors"))
    assert error.value.node == "lora"
