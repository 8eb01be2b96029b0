"""Experiments inside ComfyUI's own Python, which a server cannot show.

`python inside.py ROOT EXPERIMENT [ARGUMENT...]`, run in ComfyUI's folder. Prints one line of JSON.
"""

import contextlib
import importlib
import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ROOT, EXPERIMENT, *ARGUMENTS = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, "")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # before `comfy` puts another module `utils` on the path
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402


def pack(name: str):
    """A module of the pack."""
    if "pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("pack", f"{ROOT}/__init__.py", submodule_search_locations=[ROOT])
        sys.modules["pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["pack"])
    return importlib.import_module(f"pack.{name}")


def peak() -> int:
    """Most MB this process has held since the last call, by Linux's own account."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10


def held() -> int:
    """MB this process holds now."""
    peak()
    return peak()


def sampling(folder: str, weights: str) -> dict:
    """Open a decoder from a file, take two steps at 128x128 px: the memory it took and what came out."""
    decoder = pack("nodes.comfyui.model")
    before = held()
    model = decoder.open_decoder(Path(folder), Path(weights))
    opened = peak() - before
    out = two_steps(model)
    sampled = peak()
    layer = model.model.diffusion_model.transformer_blocks[0]
    return {
        "stored": str(layer.attn1.to_q.weight.dtype),
        "bias": str(layer.attn1.to_q.bias.dtype),
        "opened_mb": opened,
        "peak_mb": max(opened, sampled - before),
        "finite": bool(torch.isfinite(out).all()),
        "values": out.flatten()[:: out.numel() // 64].tolist(),
    }


def two_steps(model, texts: int = 6, seed: int = 0) -> torch.Tensor:
    """Two steps at 128x128 px of a made-up plan with `texts` glyph tokens."""
    config = model.model.dit_config
    generator = torch.Generator().manual_seed(seed)
    entry = {
        "prior_token_ids": torch.randint(0, config.prior_vq_quantizer_codebook_size, (1, 64), generator=generator),
        "prior_token_drop": False,
        "plan_grid": (4, 4),
        "codebook_size": config.prior_vq_quantizer_codebook_size,
    }
    embeds = torch.randn(1, texts, config.text_embed_dim, generator=generator)
    positive, negative = [[embeds, entry]], [[embeds[:, :1], {**entry, "prior_token_drop": True}]]
    latent = torch.zeros(1, 16, 16, 16)
    noise = torch.randn(latent.shape, generator=generator)
    return comfy.sample.sample(model, noise, 2, 1.5, "euler", "simple", positive, negative, latent, disable_pbar=True)


def planner_part(folder: str):
    home = Path(folder)
    return pack("nodes.comfyui.planner").PlannerPart(home, home / "vision_language_encoder")


def partly_loaded(folder: str) -> dict:
    """Plan with everything loaded, then with a third of the planner: the same tokens?"""
    planning = pack("nodes.comfyui.planning")
    part = planner_part(folder)
    whole = planning.make_plan(part, "a red sign that says 'OPEN'", 64, 96, seed=3)
    size = part.patcher.model_size()
    part.patcher.detach()
    part.patcher.load(part.patcher.load_device, lowvram_model_memory=size // 3)
    cast = sum(bool(getattr(m, "comfy_cast_weights", False)) for m in part.module.modules())
    planning.comfy.model_management.load_models_gpu = lambda *_, **__: None  # keep it as it is
    again = planning.make_plan(part, "a red sign that says 'OPEN'", 64, 96, seed=3)
    return {"cast_layers": cast, "equal": torch.equal(whole.prior_token_ids_d32, again.prior_token_ids_d32)}


def device_norms(folder: str) -> dict:
    """Plan with the device's own norm kernel, fully loaded and then with weights that are cast: how often it ran."""
    kernels, part, calls = pack("pipeline.devices.kernels"), planner_part(folder), []

    def counted(x, weight, eps):
        calls.append(x.shape)
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    kernels.register_kernels("cpu", rms_norm=counted)
    pack("nodes.comfyui.planning").make_plan(part, "a red sign that says 'OPEN'", 64, 96, seed=3)
    whole = len(calls)
    for module in part.module.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.comfy_cast_weights = True
    pack("nodes.comfyui.planning").make_plan(part, "a red sign that says 'OPEN'", 64, 96, seed=4)
    norms = sum(isinstance(m, torch.nn.RMSNorm) for m in part.module.modules())
    return {"norms": norms, "whole": whole, "cast": len(calls) - whole}


def coming_and_going(folder: str, lora: str) -> dict:
    """Bring a decoder to a device and back in ComfyUI's ways: are its weights the file's own memory then?

    The device is torch's `meta`, which keeps shapes and no numbers, so that numbers can only come from the file.
    """
    return {dtype: _coming_and_going(folder, lora, dtype) for dtype in ("bf16", "fp16")}


def _coming_and_going(folder: str, lora: str, dtype: str) -> dict:
    model, adapters, home = pack("nodes.comfyui.model"), pack("nodes.comfyui.lora"), Path(folder)
    card = torch.device("meta")
    model.choose_device = lambda *_: card
    plain = model.open_decoder(home, home / "transformer", dtype)
    plain.model.model_sampling = None  # its tables have numbers of their own
    layer = plain.model.diffusion_model.transformer_blocks[0].attn1.to_q
    wanted = {name: weight.clone() for name, weight in plain.model.state_dict().items()}
    memory = {name: weight.data_ptr() for name, weight in plain.model.state_dict().items()}
    patched = adapters.apply_adapter(plain, *adapters.read_adapter(Path(lora), "a file"), 1.0)[0]
    x = torch.ones(1, layer.in_features, dtype=getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype]))
    used = torch.nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
    size, seen = plain.model_size(), {"file": str(layer.weight.dtype), "used": torch.equal(layer(x), used)}

    def back() -> bool:
        found = plain.model.state_dict()
        same = (torch.equal(found[name], wanted[name]) and found[name].data_ptr() == memory[name] for name in wanted)
        return found.keys() == wanted.keys() and all(same)

    def broken(*_):
        raise MemoryError

    for name, patcher in {"plain": plain, "LoRA": patched}.items():
        patcher.partially_load(card, 1e32)
        seen[f"{name}, device"] = [str(layer.weight.device), str(layer.weight.dtype)]
        patcher.detach()
        seen[f"{name}, whole"] = back()
        patcher.load(card, lowvram_model_memory=3 * size // 2)  # and room to stream through
        seen[f"{name}, there"] = sum(weight.is_meta for weight in plain.model.parameters())
        patcher.partially_unload(torch.device("cpu"), size // 4)
        seen[f"{name}, left"] = sum(weight.is_meta for weight in plain.model.parameters())
        patcher.detach()
        seen[f"{name}, part"] = back()
        layer._moved = broken
        with contextlib.suppress(MemoryError):
            patcher.partially_load(card, 1e32)
        del layer._moved
        patcher.detach()
        seen[f"{name}, broken"] = back()
    with mock.patch.object(pack("pipeline.loading.weights").Weights, "maps", return_value=False):
        made = model.open_decoder(home, home / "transformer", dtype).model.state_dict().values()
    return seen | {"made": sorted({str(weight.dtype) for weight in made if weight.ndim == 2})}


def late_weights(folder: str) -> dict:
    """Open every part while ComfyUI's layers have no weights before they are loaded, as with its dynamic memory."""
    memory = importlib.import_module("comfy.memory_management")
    home, parts = Path(folder), pack("nodes.comfyui.planner")
    memory.aimdo_enabled = True
    modules = [
        planner_part(folder).module,
        parts.GlyphEncoderPart(home, home / "text_encoder").module,
        pack("nodes.comfyui.model").open_decoder(home, home / "transformer").model.diffusion_model,
        pack("nodes.comfyui.vae").open_vae(home, home / "vae").first_stage_model,
    ]
    return {
        "meta": sum(p.is_meta for m in modules for p in m.parameters()),
        "count": [len(m.state_dict()) for m in modules],
    }


def custom_layers(folder: str) -> dict:
    """A decoder of layers that another pack brings: here, ones that count how often they multiply."""
    import comfy.ops

    calls = []

    class Counting(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def forward(self, x):
                calls.append(tuple(self.weight.shape))
                return super().forward(x)

    home = Path(folder)
    model = pack("nodes.comfyui.model").open_decoder(home, home / "transformer", operations=Counting)
    layers = sum(isinstance(m, torch.nn.Linear) for m in model.model.diffusion_model.modules())
    out = two_steps(model)
    return {"layers": layers, "calls": len(calls), "finite": bool(torch.isfinite(out).all())}


def preview(folder: str) -> dict:
    """How far the preview's colours are from the autoencoder's own, over a picture of smooth colours."""
    home, config = Path(folder) / "vae", pack("pipeline.models.config").VaeConfig
    config = config.from_json(home / "config.json")
    factors, bias = (torch.tensor(x) for x in pack("nodes.comfyui.latent_preview").rgb_factors(home, config))
    vae = pack("pipeline.loading.weights").load_module(
        pack("pipeline.models.vae").Vae, config, home, "cpu", torch.float32
    )
    colours = torch.rand(1, 3, 3, 6, generator=torch.Generator().manual_seed(5)) * 2 - 1
    picture = torch.nn.functional.interpolate(colours, scale_factor=32, mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        latents = vae.normalise(vae.encode(picture))
    wanted = torch.nn.functional.avg_pool2d(picture, 8)[0].movedim(0, -1)
    shown = latents[0].movedim(0, -1) @ factors + bias
    return {"error": (shown - wanted).abs().mean().item(), "plain": (wanted - wanted.mean()).abs().mean().item()}


def out_of_memory(folder: str) -> dict:
    """A VAE whose device says in torch_npu's old words that memory ran out: does it go on in tiles?"""
    vae = pack("nodes.comfyui.vae").open_vae(Path(folder), Path(folder) / "vae")
    latent = torch.randn(1, 16, 96, 96, generator=torch.Generator().manual_seed(0))
    whole, decode = vae.decode(latent), vae.first_stage_model.decode
    sizes = []

    def small_device(x, *more):
        sizes.append(tuple(x.shape[-2:]))
        if x.shape[-1] > 64 and x.shape[-2] > 64:
            raise RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB")
        return decode(x, *more)

    vae.first_stage_model.decode = small_device
    tiled = vae.decode(latent)
    return {"shape": list(tiled.shape), "difference": (whole - tiled).abs().mean().item(), "calls": len(sizes)}


def compiled(folder: str) -> dict:
    """Three images through *TorchCompileModel*'s wrapper, of texts of three lengths: how often each made dynamo
    compile. What is compiled again after the first is an error, also where that leaves no graph."""
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    home, calls = Path(folder), []

    def backend(graph, _):
        calls.append(len(graph.graph.nodes))
        return graph.forward

    model = pack("nodes.comfyui.model").open_decoder(home, home / "transformer")
    plain = [two_steps(model, texts=texts, seed=texts) for texts in (6, 9, 4)]
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend)
    counts, differences = [], []
    for texts, wanted in zip((6, 9, 4), plain):
        found = two_steps(compiled, texts=texts, seed=texts)
        counts.append(len(calls))
        torch._dynamo.config.error_on_recompile = True
        differences.append(((found - wanted).abs().max() / wanted.abs().max()).item())
    return {"compiled": counts, "differences": differences, "nodes": max(calls)}


def lora(folder: str, *files: str) -> dict:
    """The weights that adapters change, by our node, written beside each file as merged_STRENGTH_NAME."""
    import comfy.lora
    import comfy.utils
    from safetensors.torch import save_file

    adapters, home, unmatched = pack("nodes.comfyui.lora"), Path(folder), []
    adapters.answer_trainers_keys()
    model = pack("nodes.comfyui.model").open_decoder(home, home / "transformer")
    for file in map(Path, files):
        for strength in (1.0, 0.6):
            patched, missed = adapters.apply_adapter(model, *adapters.read_adapter(file, file.name), strength)
            merged = {}
            for key, patches in patched.patches.items():
                weight = comfy.utils.get_attr(model.model, key).float().clone()
                merged[key.removeprefix("diffusion_model.")] = comfy.lora.calculate_weight(patches, weight, key)
            save_file(merged, file.with_name(f"merged_{strength}_{file.name}"))
            unmatched += missed
    return {"unmatched": unmatched}


def lora_on_codes(folder: str, *files: str) -> dict:
    """For w8 and w4: layers of codes with an adapter beside them, against layers of their numbers that ComfyUI adds the
    adapter to, as largest difference over largest value; and what is left when the adapter is taken back.
    """
    return {form: _lora_on_codes(folder, form, *files) for form in ("w8", "w4")}


def _lora_on_codes(folder: str, form: str, *files: str) -> dict:
    adapters, home, load = pack("nodes.comfyui.lora"), Path(folder), comfy.model_management.load_models_gpu
    coded, whole = (
        pack("nodes.comfyui.model").open_decoder(home, home / "transformer", dtype) for dtype in (form, "fp32")
    )
    for name, layer in coded.model.named_modules():
        if hasattr(layer, "numbers"):
            whole.model.get_submodule(name).weight = torch.nn.Parameter(layer.numbers(slice(None)), requires_grad=False)
    before = {name: weight.clone() for name, weight in coded.model.state_dict().items()}
    seen = {"differences": [], "layers": [], "bytes": []}
    for file in map(Path, files):
        read = adapters.read_adapter(file, file.name)
        one, other = coded, whole
        for strength in (0.7, -0.2)[: 1 if file.stem == "dora" else 2]:  # whose order counts in ComfyUI
            one, other = (adapters.apply_adapter(model, *read, strength)[0] for model in (one, other))
        load([one, other])
        for name in one.changes:
            x = torch.randn(3, whole.model.get_submodule(name).in_features)
            wanted, found = (model.model.get_submodule(name)(x) for model in (whole, coded))
            seen["differences"].append(((found - wanted).abs().max() / wanted.abs().max()).item())
        seen["layers"].append(len(one.changes))
        seen["bytes"].append(one.model_size() - coded.model_size())
        off = adapters.apply_adapter(coded, *read, 0.0)[0]
        comfy.model_management.unload_all_models()
    load([off])
    after = coded.model.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return seen | {"restored": same, "attributes": len(off.object_patches)}


def planner_lora(folder: str, *files: str) -> dict:
    """Plans without LoRA, with the first file, with both, and without again; and what is left then."""
    planning = pack("nodes.comfyui.planning")
    read = pack("pipeline.loading.lora_files").read_planner_lora
    part = planner_part(folder)
    one = part.with_lora(read(Path(files[0]), part.config), 1.0)
    both = one.with_lora(read(Path(files[1]), part.config), -0.5)
    before = {name: tensor.clone() for name, tensor in part.module.state_dict().items()}

    def tokens(planner) -> list[int]:
        return planning.make_plan(planner, "a red sign that says 'OPEN'", 64, 96, seed=3).preview_token_ids[0].tolist()

    seen = {"plain": tokens(part), "one": tokens(one), "both": tokens(both), "one again": tokens(one)}
    seen["off"] = tokens(part.with_lora(read(Path(files[0]), part.config), 0.0))
    seen["again"] = tokens(part)
    after = part.module.state_dict()
    seen["restored"] = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    both.patcher.detach()
    both.patcher.patch_model(load_weights=False)
    both.patcher.load(both.patcher.load_device, lowvram_model_memory=both.patcher.model_size() // 3)
    seen["cast"] = sum(bool(getattr(m, "comfy_cast_weights", False)) for m in part.module.modules())
    planning.comfy.model_management.load_models_gpu = lambda *_, **__: None  # keep it as it is
    return seen | {"partly": tokens(both)}


def first_step(folder: str, weights: str) -> dict:
    """Milliseconds from a sampling's start at 1024x1024 px to its first step: checks, and what both passes share."""
    model = pack("nodes.comfyui.model").open_decoder(Path(folder), Path(weights))
    config, tokens, reached = model.model.dit_config, torch.Generator().manual_seed(0), []
    ids = torch.randint(0, config.prior_vq_quantizer_codebook_size, (1, 32, 32), generator=tokens)
    entry = {"plan_grid": (32, 32), "codebook_size": config.prior_vq_quantizer_codebook_size}
    entry["prior_token_ids"] = ids.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    embeds = torch.randn(1, 40, config.text_embed_dim, generator=tokens)
    conds = [[[embeds, entry | {"prior_token_drop": False}]], [[embeds[:, :1], entry | {"prior_token_drop": True}]]]
    noise = torch.randn(1, 16, 128, 128, generator=tokens)

    def step(latents, *_):
        reached.append((time.perf_counter(), time.process_time()))
        if len(reached) % 2:  # the other pass of guidance is still to be prepared
            return latents
        raise InterruptedError

    model.model.diffusion_model.step = step
    wall, cpu = [], []
    for _ in range(6):
        start = time.perf_counter(), time.process_time()
        with contextlib.suppress(InterruptedError):
            comfy.sample.sample(model, noise, 20, 1.5, "euler", "simple", *conds, noise * 0, disable_pbar=True, seed=1)
        wall.append(reached[-1][0] - start[0])
        cpu.append(reached[-1][1] - start[1])
    return {"wall_ms": 1e3 * min(wall[1:]), "cpu_ms": 1e3 * min(cpu[1:])}  # the first loads the model


def samplers(folder: str) -> dict:
    """Mean and deviation that every sampler and scheduler makes of a known flow."""
    sys.path.append(str(Path(__file__).parent))
    home = Path(folder)
    model = pack("nodes.comfyui.model").open_decoder(home, home / "transformer")
    found = importlib.import_module("flow_samplers").measure(model)
    return found | {"warned": list(pack("nodes.comfyui.samplers").MISSES)}


def core_layers(folder: str, file: str) -> dict:
    """A W8 file of the decoder in ComfyUI's own layers: whether its numbers are ours, and how far a product is off."""
    import comfy.ops
    import comfy.utils

    form = "int8_tensorwise"
    if form not in getattr(importlib.import_module("comfy.quant_ops"), "QUANT_ALGOS", {}):
        return {"known": False}
    config = pack("pipeline.models.config").DitConfig.from_json(Path(folder) / "transformer" / "config.json")
    operations = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32)
    state = comfy.utils.load_torch_file(file)
    dit = pack("pipeline.models.transformer").Dit(config, operations=operations, dtype=torch.float32)
    dit.load_state_dict(dict(state), strict=True)
    coded = {name: layer for name, layer in dit.named_modules() if getattr(layer, "quant_format", None) == form}
    widened = {name: state[f"{name}.weight"].float() * state[f"{name}.weight_scale"] for name in coded}
    equal = all(torch.equal(layer.weight.dequantize(), widened[name]) for name, layer in coded.items())
    name, layer = next(iter(coded.items()))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    wanted = torch.nn.functional.linear(x, widened[name], layer.bias)
    error = ((layer(x) - wanted).abs().max() / wanted.abs().max()).item()
    marks = sum(key.endswith(".comfy_quant") for key in state)
    return {"known": True, "layers": len(coded), "marks": marks, "equal": equal, "error": error}


class Held:
    """A model that ComfyUI has loaded, as its list shows it."""

    model = "loaded"

    def __init__(self, device: torch.device, size: int):
        self.device, self.size = device, size

    def model_loaded_memory(self) -> int:
        return self.size


def placements() -> dict:
    """The release on cards of 24 GiB, 6 held by ComfyUI, and of 15.5, by ComfyUI's options; and where parts wait."""
    memory, fitting, P = comfy.model_management, pack("nodes.comfyui.memory"), pack("pipeline.loading.placement")
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    P.available = {first: 18 << 30, torch.device("cpu"): 64 << 30}.__getitem__
    memory.current_loaded_models[:] = [Held(first, 6 << 30), Held(second, 3 << 30)]
    memory.get_torch_device = lambda: first
    model, bf16 = P.CheckpointSizes.of_release(), dict.fromkeys(P.COMPONENTS, torch.bfloat16)
    wanted = P.Placement(dict.fromkeys(P.COMPONENTS, first), bf16, parked=True)
    needs, found = P.memory_needs(model, bf16), {"room": fitting.budget(first) >> 30}
    for state in ("NORMAL_VRAM", "HIGH_VRAM", "NO_VRAM"):
        memory.vram_state = memory.VRAMState[state]
        found[state] = fitting.as_comfyui_loads(wanted, needs).name
        found[f"{state} waits on"] = str(
            pack("nodes.comfyui.loading").manage(torch.nn.Linear(1, 1), second).offload_device
        )
    memory.current_loaded_models.clear()
    P.available = {first: 31 << 29, torch.device("cpu"): 64 << 30}.__getitem__
    for state in ("NORMAL_VRAM", "DISABLED"):
        memory.vram_state = memory.VRAMState[state]
        found[f"{state}, short"] = fitting.as_comfyui_loads(wanted, needs).name
    return found | {"w4 on an NPU": refused_on_npu("w4", "auto")}


def refused_on_npu(*choices: str) -> list[str]:
    """What the loaders say of 4-bit weights there: of whole ones to round, and of a file that has them."""
    loading, said = pack("nodes.comfyui.loading"), []
    for choice in choices:
        files = SimpleNamespace(form=None if choice == "w4" else "w4")
        try:
            loading.check_form(choice, files, SimpleNamespace(type="npu"))
        except ValueError as error:
            said.append(str(error))
    return said


print(json.dumps(globals()[EXPERIMENT](*ARGUMENTS)))
