"""Graphs of every kind on a real server, their latents compared: makes the table of docs/comfyui.md.

    python tests/comfyui/graph_table.py [--packs FOLDER] [--only TEXT] [--out FILE.json]

Takes every node of ComfyUI (and of the packs in FOLDER) that goes between loader and VAE by its sockets and runs it
with its defaults, or with the settings in `CHOSEN`; then graphs that need more than one node. After *Torch Compile*
two more images are made, of other seeds and prompts, and what torch compiles again for them is counted.

ComfyUI is the one of the tests: COMFYUI_DIR chooses another.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from comfyui_glm_image.tests.comfyui import graphs
from comfyui_glm_image.tests.comfyui.conftest import with_other_pack
from comfyui_glm_image.tests.comfyui.graphs import change, node, sampler
from comfyui_glm_image.tests.comfyui.server import PromptError, Server
from comfyui_glm_image.tests.comfyui.test_sampling import latent_of
from comfyui_glm_image.tools import comfyui

MODEL, STEPS, SIDE = "small (bundled)", 8, 128
EQUAL = 1e-5  # largest difference over largest value, below which two latents are the same
COMPILED = "TorchCompileModel, then another seed and a longer prompt"
RECOMPILED = "Recompiling function"  # a line of torch's log
WARNED = "misses on flow models", "images will be noise", "has no effect on GLM-Image"
# Settings with which a node does something to an image of this size; a node's defaults often do nothing to it.
CHOSEN: dict[str, dict] = {
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "EasyCache": {"reuse_threshold": 2.0, "start_percent": 0.1, "end_percent": 1.0},
    "LazyCache": {"reuse_threshold": 2.0, "start_percent": 0.1, "end_percent": 1.0},
    "RenormCFG": {"renorm_cfg": 0.5},
    "CFGNorm": {"strength": 0.5},
    "FreSca": {"scale_low": 2.0},
    "Epsilon Scaling": {"scaling_factor": 1.05},
    "LoraLoaderModelOnly": {"lora_name": "glm_image_small_negative.safetensors"},
    "GLMImageLoRA": {"lora": "glm_image_small_negative.safetensors"},
    "ConditioningSetMask": {"mask": ["half", 0]},
    "ConditioningSetProperties": {"mask": ["half", 0]},
    "ConditioningSetTimestepRange": {"start": 0.3, "end": 1.0},
    "LatentUpscale": {"width": 2 * SIDE, "height": 2 * SIDE},
    "LatentUpscaleBy": {"scale_by": 2.0},
    "LatentCrop": {"width": 64, "height": 64},
    "RepeatLatentBatch": {"amount": 2},
    "ModelSamplingGLMImage": {"shift": 3.0},
    "ModelSamplingFlux": {"width": 512, "height": 512},
    "LatentMultiply": {"multiplier": 0.5},
    "FluxGuidance": {"guidance": 6.0},
    "ReferenceLatent": {"latent": ["start", 0]},
    "ApplyFBCacheOnModel": {"residual_diff_threshold": 0.2},
    "UNetSelfAttentionMultiply": {"v": 1.5},  # queries and keys are normalised
    "UNetCrossAttentionMultiply": {"q": 1.5},
    "UNetTemporalAttentionMultiply": {"self_structural": 1.5, "cross_structural": 1.5},
}
# Nodes for other kinds of inputs, or that train, save or need a file that is not here.
SKIPPED = (
    "Wan", "wan", "Hunyuan", "LTXV", "ControlNet", "StyleModel", "unCLIP", "GLIGEN", "Stable", "Video", "Train", "Hook",
    "LoraModelLoader", "HypernetworkLoader", "QwenImageDiffsynth", "USOStyle", "LatentApplyOperation", "ModelMerge",
    "ChromaRadiance", "SplitSigmas", "Extend", "SD_4X", "CLIP", "InstructPix", "KSampler", "SamplerCustom", "Layout",
    "PerpNeg", "SamplerLCMUpscale", "Kontext", "Audio", "Latent Noise Injection", "Preview", "Save", "Timer",
    "TorchCompile",  # below
)  # fmt: skip
# Nodes that leave the latent as it is for a reason; every other "same" is a node that does nothing without a word.
SAME = {
    "LatentFromBatch": "the one image of the batch",
    "LatentBatchSeedBehavior": "a batch of one",
    "RebatchLatents": "a batch of one",
    "LatentRotate": "by none, the default",
    "LatentComposite": "of a latent with itself",
    "LatentCompositeMasked": "of a latent with itself",
    "LatentBlend": "of a latent with itself",
    "LatentInterpolate": "of a latent with itself",
    "ConditioningAverage": "of a conditioning with itself",
    "ConditioningCombine": "of a conditioning with itself",
    "ConditioningSetAreaStrength": "of 1, the default",
    "ConditioningSetMask": "one mask over one conditioning is normalised away",
    "ConditioningSetProperties": "one mask over one conditioning is normalised away",
    "ConditioningSetDefaultCombine": "of a conditioning with itself",
    "PairConditioningCombine": "of a conditioning with itself",
    "PairConditioningSetProperties": "of strength 1, the default",
    "PairConditioningSetPropertiesAndCombine": "of a conditioning with itself",
    "PairConditioningSetDefaultCombine": "of a conditioning with itself",
    "InpaintModelConditioning": "its latent carries the mask, its conditioning is for models that take one",
    "ModelComputeDtype": "the default is the model's own",
    "DifferentialDiffusion": "acts on masks, of which there is none here",
    "FluxDisableGuidance": "there is none to disable",
    "UNetCrossAttentionMultiply": "there are no such layers, and it leaves no trace to warn about",
    "UNetTemporalAttentionMultiply": "there are no such layers, and it leaves no trace to warn about",
    "ConditioningSetPropertiesAndCombine": "of a conditioning with itself",
    "ConditioningMultiCombine": "of a conditioning with itself",
    "GetLatentRangeFromBatch": "the one image of the batch",
    "GetLatentSizeAndCount": "only counts",
    "InsertLatentToIndexed": "of a latent into itself",
    "ModelPatchTorchSettings": "a setting of CUDA",
    "ModelMemoryUsageFactorOverride": "changes the memory estimate only",
    "Ideogram4OptimizationsKJ": "for Ideogram 4 only, and leaves no trace to warn about",
    "NormalizedAttentionGuidance": "finds no layers of a UNet, and leaves no trace to warn about",
    "PLADIS": "finds no layers of a UNet, and leaves no trace to warn about",
    "SlidingWindowGuidanceAdvanced": "a window larger than the image, the default",
    "ConditioningMultiply": "by 1, the default",
    "LatentCutToBatch": "the one image of the batch",
    "ResolutionBucket": "the one image of the batch",
    "ModelAttentionBackend": "the default is ComfyUI's own",
    "MultiGPU_WorkUnits": "there is one device",
    "SelectModelDevice": "the default is ComfyUI's own",
    "BerniniConditioning": "for another model, which alone reads what it adds",
    "PiDConditioning": "for another model, which alone reads what it adds",
    "VOIDInpaintConditioning": "for another model, which alone reads what it adds",
    "HiDreamO1PatchSeamSmoothing": "for another model only, and leaves no trace to warn about",
    "MiniMaxChunkFeedForward": "for another model only, and leaves no trace to warn about",
    "MiniMaxLowVRAMAttention": "for another model only, and leaves no trace to warn about",
    "OtherSameBlocks": "blocks replaced by themselves",
    "OtherSameAttention": "attention replaced by itself",
    "OtherSameWrapper": "a wrapper that changes nothing",
    "OtherWritingWrapper": "a wrapper that writes into its input, which is a copy",
    "ddim": "euler, when all of the image is drawn",
}


@dataclass
class Case:
    """One graph: `wanted` is "changes" (from the plain graph), "same", "refused" or "warned"; None: any but a silent
    no-op."""

    group: str
    name: str
    graph: dict
    wanted: str | None = None


def plain() -> dict:
    graph = graphs.text_to_image(MODEL, SIDE, SIDE, plan_seed=9)
    graph["half"] = node("SolidMask", value=0.5, width=SIDE, height=SIDE)
    graph["keep"] = node("SaveLatent", samples=["sample", 0], filename_prefix="latent")
    del graph["image"], graph["save"]
    return change(graph, sample_steps=STEPS, text_glyph_mode="prompt_order")


def advanced() -> dict:
    """The plain graph by SamplerCustomAdvanced."""
    graph = plain()
    graph["noise"] = node("RandomNoise", noise_seed=5)
    graph["euler"] = node("KSamplerSelect", sampler_name="euler")
    graph["sigmas"] = node("BasicScheduler", model=["load", 1], scheduler="simple", steps=STEPS, denoise=1.0)
    pair = {"positive": ["text", 0], "negative": ["text", 1]}
    graph["guider"] = node("CFGGuider", model=["load", 1], **pair, cfg=1.5)
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    graph["sample"] = node("SamplerCustomAdvanced", **links, latent_image=["latent", 0])
    return graph


SOURCES = {
    "MODEL": ["load", 1], "VAE": ["load", 3], "LATENT": ["start", 0], "MASK": ["half", 0], "SIGMAS": ["sigmas", 0],
    "CONDITIONING": ["text", 0], "IMAGE": ["picture", 0], "GLM_IMAGE_PLAN": ["plan", 0], "NOISE": ["noise", 0],
    "SAMPLER": ["euler", 0], "GUIDER": ["guider", 0],
}  # fmt: skip


def inputs_of(info: dict, kind: str) -> dict | None:
    """A node's inputs from the graph's sockets and its defaults; None if it needs what no graph here has."""
    given, chosen = {}, CHOSEN.get(kind, {})
    for section in ("required", "optional"):
        for name, (type_name, *more) in info["input"].get(section, {}).items():
            options = more[0] if more else {}
            if name in chosen:
                given[name] = chosen[name]
            elif isinstance(type_name, list) or type_name == "COMBO":
                choices = type_name if isinstance(type_name, list) else options.get("options") or []
                if not choices:
                    return None
                given[name] = options.get("default", choices[0])
            elif type_name in SOURCES and section == "optional":
                continue
            elif type_name in SOURCES:
                given[name] = ["text", 1] if name == "negative" else SOURCES[type_name]
            elif "default" in options:
                given[name] = options["default"]
            elif type_name in ("INT", "FLOAT"):
                given[name] = options.get("min", 0)
            elif type_name in ("STRING", "BOOLEAN"):
                given[name] = "" if type_name == "STRING" else False
            elif section == "required":
                return None
    return given


def sockets_of(info: dict) -> set[str]:
    """Types of a node's inputs that are links."""
    declared = [entry[0] for section in ("required", "optional") for entry in info["input"].get(section, {}).values()]
    return {kind for kind in declared if isinstance(kind, str) and kind in SOURCES}


def from_sockets(object_info: dict) -> Iterator[Case]:
    """Every node that goes somewhere between loader and VAE, in the plain graph."""
    for kind, info in object_info.items():
        ours = kind.startswith("GLMImage") and kind not in ("GLMImageLoRA",)
        if ours or any(word in kind for word in SKIPPED) or info.get("deprecated"):
            continue
        types = sockets_of(info)
        inputs, out = inputs_of(info, kind), (info["output"] or [None])[0]
        if inputs is None or not isinstance(out, str) or out not in SOURCES:
            continue
        where = "ComfyUI" if info["python_module"].split(".")[0] in ("nodes", "comfy_extras") else "other packs"
        where = "this pack" if "GLMImage" in kind else where
        graph = plain() | {"node": node(kind, **inputs)}
        if out == "MODEL" and "MODEL" in types:
            yield Case(f"{where}: MODEL", kind, change(graph, sample_model=["node", 0]))
        elif out == "CONDITIONING" and "CONDITIONING" in types:
            changes = {"sample_positive": ["node", 0]}
            if info["output"][:2] == ["CONDITIONING"] * 2:
                changes["sample_negative"] = ["node", 1]
            yield Case(f"{where}: CONDITIONING", kind, change(graph | start(), **changes))
        elif out == "LATENT" and "LATENT" in types and "MODEL" not in types:
            yield Case(f"{where}: LATENT", kind, again(graph, ["node", 0]))
        elif out in ("SIGMAS", "SAMPLER", "GUIDER", "NOISE") and where == "ComfyUI":
            graph = advanced() | {"node": graph["node"]}
            yield Case(f"{where}: {out}", kind, change(graph, **{f"sample_{out.lower()}": ["node", 0]}))


def start() -> dict:
    """An image to start from, and its latent."""
    return {
        "picture": node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x3366CC),
        "start": node("VAEEncode", pixels=["picture", 0], vae=["load", 3]),
    }


def again(graph: dict, latent: list) -> dict:
    """A sampling that keeps half of a latent made from a picture."""
    return change(graph | start(), sample_latent_image=latent, sample_denoise=0.5)


def of_samplers(object_info: dict) -> Iterator[Case]:
    declared = object_info["KSampler"]["input"]["required"]
    for name in declared["sampler_name"][0]:
        yield Case("sampler", name, change(plain(), sample_sampler_name=name), "same" if name == "euler" else None)
    for name in declared["scheduler"][0]:
        yield Case("scheduler", name, change(plain(), sample_scheduler=name), "same" if name == "simple" else None)


def two_halves() -> dict:
    shared = {"steps": STEPS, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "noise_seed": 5}
    shared |= {"model": ["load", 1], "positive": ["text", 0], "negative": ["text", 1]}
    middle = {"start_at_step": 0, "end_at_step": STEPS // 2, "return_with_leftover_noise": "enable"}
    end = {"start_at_step": STEPS // 2, "end_at_step": STEPS, "return_with_leftover_noise": "disable"}
    first = node("KSamplerAdvanced", **shared, **middle, latent_image=["latent", 0], add_noise="enable")
    second = node("KSamplerAdvanced", **shared, **end, latent_image=["first", 0], add_noise="disable")
    return plain() | {"first": first, "sample": second}


def hires(width: int, height: int, resize: bool = False) -> dict:
    graph = plain()
    inputs = {"samples": ["sample", 0], "upscale_method": "bislerp", "crop": "disabled"}
    graph["larger"] = node("LatentUpscale", width=width, height=height, **inputs)
    graph["second"] = sampler(steps=STEPS, seed=6, latent_image=["larger", 0], denoise=0.5)
    if resize:
        graph["resized"] = node("GLMImageResizePlan", plan=["plan", 0], width=32, height=32, latent=["larger", 0])
        graph["text2"] = {**graph["text"], "inputs": {**graph["text"]["inputs"], "plan": ["resized", 0]}}
        graph = change(graph, second_positive=["text2", 0], second_negative=["text2", 1])
    return change(graph, keep_samples=["second", 0])


def from_image(denoise: float, mask: bool) -> dict:
    graph = plain() | start()
    inputs = {"planner": ["load", 0], "image": ["picture", 0], "prompt": '"OPEN"', "megapixels": 0.0}
    graph["plan"] = node("GLMImagePlanFromImage", **inputs, mask=["half", 0])
    graph["start"] = node("VAEEncode", pixels=["plan", 1], vae=["load", 3])
    if mask:
        graph["start"] = node("SetLatentNoiseMask", samples=["clean", 0], mask=["plan", 2])
        graph["clean"] = node("VAEEncode", pixels=["plan", 1], vae=["load", 3])
    return change(graph, sample_latent_image=["start", 0], sample_denoise=denoise)


def nested() -> dict:
    """Ids as the page gives them to nodes inside subgraphs."""
    names = {"plan": "7:plan", "text": "7:3:text", "half": "7:half"}
    graph = {names.get(name, name): entry for name, entry in plain().items()}
    for entry in graph.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                entry["inputs"][name] = [names.get(value[0], value[0]), value[1]]
    return graph


def of_several_nodes() -> Iterator[Case]:
    graph, whole = plain(), "several nodes"
    yield Case(whole, "plain graph again, sampler seed changed", change(graph, sample_seed=6), "changes")
    yield Case(whole, "SamplerCustomAdvanced with CFGGuider", advanced(), "same")
    yield Case(whole, "two KSampler (Advanced) in a row", two_halves(), "same")
    yield Case(whole, "GLM-Image Decode", graph | {"sample": graphs.decoder(STEPS)}, "same")
    yield Case(whole, "SamplerCustom on GLM-Image Sigmas", graph | graphs.custom_sampler(STEPS), "same")
    yield Case(whole, "hires fix, twice the size", hires(2 * SIDE, 2 * SIDE), "changes")
    yield Case(whole, "hires fix, another size", hires(160, 160), "refused")
    yield Case(whole, "hires fix, another size, plan resized", hires(160, 160, True), "changes")
    yield Case(whole, "image to image", from_image(0.5, False), "changes")
    yield Case(whole, "inpainting", from_image(1.0, True), "changes")
    yield Case(whole, "nodes in subgraphs", nested(), "same")
    lora = node("GLMImageLoRA", model=["load", 1], lora="glm_image_small_negative.safetensors", strength=1.0)
    yield Case(whole, "LoRA bypassed", graph | {"lora": lora}, "same")
    off = graph | {"lora": {**lora, "inputs": {**lora["inputs"], "strength": 0.0}}}
    yield Case(whole, "LoRA of strength 0", change(off, sample_model=["lora", 0]), "same")
    cond = {"conditioning": ["text", 0], "mask": ["half", 0], "strength": 1.0}
    bounds = graph | {"mask": node("ConditioningSetMask", **cond, set_cond_area="mask bounds")}
    yield Case(whole, "Set Mask with mask bounds", change(bounds, sample_positive=["mask", 0]), "refused")
    both = graph | {"both": node("ConditioningCombine", conditioning_1=["text", 0], conditioning_2=["text", 0])}
    yield Case(whole, "a conditioning combined with itself", change(both, sample_positive=["both", 0]), "same")
    batch = change(graph, latent_batch_size=3)
    yield Case(whole, "a batch of three", batch, "changes")
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    tiled = graph | {"encoded": node("VAEEncodeTiled", pixels=["picture", 0], vae=["load", 3], **tiles)} | start()
    yield Case(
        whole, "tiled encoding", change(tiled, sample_latent_image=["encoded", 0], sample_denoise=0.5), "changes"
    )
    merged = graph | {"merge": node("ModelMergeSimple", model1=["load", 1], model2=["load", 1], ratio=0.5)}
    yield Case(whole, "a model merged with itself", change(merged, sample_model=["merge", 0]), "same")
    compiled = graph | {"compile": node("TorchCompileModel", model=["load", 1], backend="inductor")}
    yield Case(whole, COMPILED, change(compiled, sample_model=["compile", 0]), "same")
    foreign = graph | {"other": node("OtherConditioning", width=48)}
    yield Case(whole, "another model's conditioning", change(foreign, sample_positive=["other", 0]), "refused")
    small = change(graph | {"latent": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)})
    yield Case(whole, "an empty latent of SD 1.5 (core widens it)", small, "same")
    sd3 = change(graph | {"latent": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1)})
    yield Case(whole, "an empty latent of SD3", sd3, "same")


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float | None:
    if found.shape != wanted.shape:
        return None
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def run(server: Server, case: Case, wanted: torch.Tensor) -> tuple[str, str]:
    """A graph's verdict, and what there is to say about it."""
    start = len(server.log)
    try:
        found = latent_of(server, server.run(case.graph))
    except PromptError as error:
        return "refused", error.text.splitlines()[0][:200]
    log = server.log[start:]
    if not torch.isfinite(found).all():
        return "BROKEN", "not finite"
    if warning := next((line for line in log.splitlines() if any(word in line for word in WARNED)), None):
        return "warned", warning.strip()
    off = difference(found, wanted)
    skipped = next((line.strip() for line in log.splitlines() if "- skipped" in line), "")
    if off is None:
        return "changes", f"{' x '.join(map(str, found.shape))}"
    return ("same" if off < EQUAL else "changes"), skipped or ("" if off < EQUAL else f"by {off:.2g}")


def recompiled(server: Server, graph: dict) -> int:
    """What torch compiles again for two more images of a graph that has run."""
    start = len(server.log)
    server.run(change(graph, sample_seed=6))
    server.run(change(graph, sample_seed=7, plan_prompt='a green card that says "SEVERAL" in black and "WORDS" in red'))
    return server.log[start:].count(RECOMPILED)


def rows(server: Server, only: str) -> Iterator[tuple[Case, str, str]]:
    info = server.get("/object_info")
    base = latent_of(server, server.run(plain()))
    server.run(change(plain(), keep_filename_prefix="warm"))
    halves = {}
    for case in (*of_samplers(info), *from_sockets(info), *of_several_nodes()):
        if only and only not in f"{case.group} {case.name}":
            continue
        wanted, began = base, time.monotonic()
        if "start" in case.graph and case.graph["sample"]["inputs"].get("denoise") == 0.5:  # half of a picture's latent
            if "half" not in halves:
                halves["half"] = latent_of(server, server.run(again(plain(), ["start", 0])))
            wanted = halves["half"]
        verdict, about = run(server, case, wanted)
        if case.name == COMPILED and verdict == "same":
            times = recompiled(server, case.graph)
            verdict, about = "RECOMPILED" if times else verdict, f"{times} recompilations"
        print(f"{case.group:28} {case.name:40} {verdict:8} {about[:90]} ({time.monotonic() - began:.1f} s)", flush=True)
        yield case, verdict, about


def table(results: list[dict]) -> str:
    """One row a group and verdict; the verdict of every version where they disagree."""
    names = [f"ComfyUI {result['version']}" for result in results]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for version, result in zip(names, results):
        for row in result["rows"]:
            found.setdefault((row["group"], row["name"]), {})[version] = meaning(row)
    grouped: dict[tuple[str, str], list[str]] = {}
    for (group, name), verdicts in found.items():
        same = len(set(verdicts.values())) == 1
        words = next(iter(verdicts.values())) if same else "; ".join(f"{v}: {w}" for v, w in verdicts.items())
        grouped.setdefault((group, words), []).append(name)
    lines = [
        f"{len(found)} graphs on {' and '.join(names)}.",
        "",
        "| graphs | node or graph | result |",
        "|---|---|---|",
    ]
    return "\n".join(
        lines + [f"| {group} | {', '.join(members)} | {words} |" for (group, words), members in grouped.items()]
    )


def meaning(row: dict) -> str:
    """A verdict as the table says it."""
    if row["verdict"] == "same" and row["wanted"] != "same":
        return SAME.get(row["name"], "DOES NOTHING")
    if row["wanted"] and row["verdict"] != row["wanted"]:
        return f"DIFFERS: {row['verdict']}, and should be {row['wanted']}"
    if row["name"] == COMPILED and row["verdict"] == "same":
        return f"works: the same latent, {row['about']}"
    words = {"changes": "works", "same": "works: the same latent", "warned": "runs, with a warning at the node"}
    return words.get(row["verdict"], row["verdict"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, help="folder of other packs to try too")
    parser.add_argument("--only", default="", help="only graphs whose group and name hold this")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--table", type=Path, nargs="+", help="run nothing; print the table of these files of results")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(file.read_text()) for file in options.table]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        base = with_other_pack(Path(folder))
        for pack in sorted(options.packs.iterdir()) if options.packs else ():
            if pack.is_dir():
                (base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
        os.environ["TORCH_LOGS"] = "recompiles"  # for the server's log
        server = Server(comfyui.install(), base)
        try:
            found = [
                {"group": c.group, "name": c.name, "wanted": c.wanted, "verdict": verdict, "about": about}
                for c, verdict, about in rows(server, options.only)
            ]
        finally:
            server.stop()
    if options.out:
        options.out.write_text(json.dumps({"version": server.version, "rows": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
