"""Graphs in API form, built from parts that tests change one at a time."""

from typing import Any

Graph = dict[str, dict[str, Any]]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def text_to_image(model: str, width: int = 96, height: int = 64, **changes) -> Graph:
    """Load, plan, condition, sample, decode and save; `changes` replace inputs as `node_input=value`."""
    graph = {
        "load": node("GLMImageLoader", model=model, decoder_dtype="auto", planner_dtype="auto", device="auto"),
        "plan": node(
            "GLMImagePlan",
            planner=["load", 0],
            prompt="a red sign that says 'OPEN'",
            width=width,
            height=height,
            seed=3,
            temperature=0.9,
            top_p=0.75,
            count=1,
        ),
        "text": node(
            "GLMImageConditioning",
            glyph_encoder=["load", 2],
            plan=["plan", 0],
            glyph_mode="reference",
            glyph_texts="",
            negative_texts="",
        ),
        "latent": node("EmptyGLMImageLatent", width=width, height=height, batch_size=1),
        "sample": sampler(),
        "image": node("VAEDecode", samples=["sample", 0], vae=["load", 3]),
        "save": node("SaveImage", images=["image", 0], filename_prefix="glm"),
    }
    return change(graph, **changes)


def sampler(name: str = "euler", scheduler: str = "simple", steps: int = 6, seed: int = 5, **changes) -> dict:
    inputs = {
        "model": ["load", 1],
        "positive": ["text", 0],
        "negative": ["text", 1],
        "latent_image": ["latent", 0],
        "seed": seed,
        "steps": steps,
        "cfg": 1.5,
        "sampler_name": name,
        "scheduler": scheduler,
        "denoise": 1.0,
    }
    return node("KSampler", **{**inputs, **changes})


def decoder(steps: int, seed: int = 5, images: int = 1, plan: str = "plan") -> dict:
    """GLM-Image Decode in place of the KSampler."""
    inputs = {"model": ["load", 1], "plan": [plan, 0], "positive": ["text", 0], "negative": ["text", 1]}
    return node("GLMImageDecode", **inputs, steps=steps, cfg=1.5, seed=seed, images_per_plan=images)


def custom_sampler(steps: int, seed: int = 5) -> Graph:
    """GLM-Image Sigmas and SamplerCustom in place of the KSampler."""
    return {
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("GLMImageSigmas", model=["load", 1], steps=steps, denoise=1.0),
        "sample": node(
            "SamplerCustom",
            model=["load", 1],
            positive=["text", 0],
            negative=["text", 1],
            latent_image=["latent", 0],
            noise_seed=seed,
            add_noise=True,
            cfg=1.5,
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
        ),
    }


def change(graph: Graph, **changes) -> Graph:
    """A copy with inputs replaced: `change(graph, plan_seed=4)` sets the seed of the node named plan."""
    graph = {name: {**entry, "inputs": dict(entry["inputs"])} for name, entry in graph.items()}
    for key, value in changes.items():
        name, _, wanted = key.partition("_")
        graph[name]["inputs"][wanted] = value
    return graph


def saving_latent(graph: Graph, plan: bool = True) -> Graph:
    """End in files of the latent and of the plan instead of an image."""
    kept = {name: entry for name, entry in graph.items() if name not in ("image", "save")}
    kept["keep"] = node("SaveLatent", samples=["sample", 0], filename_prefix="latent")
    if plan:
        kept["plans"] = node("GLMImageSavePlan", plan=["plan", 0], filename_prefix="plans/plan")
    return kept


def with_file(graph: Graph, file: str, dtype: str = "auto") -> Graph:
    """The decoder of the random checkpoint from one file in models/diffusion_models."""
    graph = graph | {
        "decoder": node(
            "GLMImageDecoderLoader", model="random/model_index.json", dtype=dtype, device="auto", weights=file
        )
    }
    return change(graph, sample_model=["decoder", 0])
