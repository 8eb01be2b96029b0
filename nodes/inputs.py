"""Inputs that several nodes share, and the menu groups."""

import torch
from comfy_api.latest import io

from ..pipeline.devices.device import available_devices
from ..pipeline.geometry import MAX_SIDE, TOKEN
from ..pipeline.models.weight_forms import FORMS
from ..pipeline.planning.make_plan import MAX_COUNT
from .comfyui import model_folders
from .comfyui.loading import DTYPES

MENU = "GLM-Image"
LOADERS = f"{MENU}/loaders"
SAMPLING = f"{MENU}/sampling"
LAYOUT = f"{MENU}/layout"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
REFERENCES = 4
SIZES = "glm_image_sizes"  # [width, height] by model, for the page (js/sizes.js)


def lines(text: str) -> list[str]:
    """One text a line; empty lines are none."""
    return [line for line in text.splitlines() if line.strip()]


def model_input() -> io.Combo.Input:
    models = io.Combo.Input(
        "model",
        options=model_folders.model_names(),
        default=model_folders.BUNDLED,
        tooltip="A checkpoint folder in models/glm_image, or the small one that comes with this pack.",
    )
    models.extra_dict = {SIZES: model_folders.usual_sizes()}  # ComfyUI 0.3.75 takes it nowhere else
    return models


def weights_input(kind: str, optional: bool = False, name: str = "weights") -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=model_folders.weight_names(kind),
        default=model_folders.FROM_FOLDER,
        optional=optional,
        tooltip=f"Weights of the checkpoint, or a single file in models/{kind} of the same architecture.",
    )


def dtype_input(name: str = "dtype", what: str = "the weights", forms: tuple[str, ...] = ()) -> io.Combo.Input:
    """`forms`: of 8 and 4 bits, to which weights may be rounded."""
    rounded = " w8 and w4 round them to 8 and 4 bits while they load, for cards that cannot hold them." if forms else ""
    return io.Combo.Input(
        name,
        options=["auto", *DTYPES, *forms],
        default="auto",
        tooltip=f"Type of {what}. auto: the best the device computes in; fp8 halves the memory and costs quality."
        + rounded,
    )


def rounded_dtype_input(name: str = "dtype", what: str = "the weights") -> io.Combo.Input:
    """Of planner or decoder."""
    return dtype_input(name, what, FORMS)


def vae_dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "dtype",
        options=["auto", "bf16", "fp32"],
        default="auto",
        tooltip="Type of the weights. auto: the best the device computes in. fp16 would give black images.",
    )


def device_names() -> list[str]:
    """`auto` (ComfyUI's own choice), every accelerator and the CPU."""
    return ["auto", *map(str, available_devices())]


def device_input(name: str = "device", what: str = "to compute") -> io.Combo.Input:
    return io.Combo.Input(
        name, options=device_names(), default="auto", tooltip=f"Where {what}. auto: where ComfyUI does."
    )


def size_inputs(default: int = 1024, least: int = TOKEN, more: str = "") -> list[io.Int.Input]:
    """Width and height on the grid; `more` ends their tooltips."""
    return [
        io.Int.Input(
            side, default=default, min=least, max=MAX_SIDE, step=TOKEN, tooltip=f"{side.capitalize()} in pixels.{more}"
        )
        for side in ("width", "height")
    ]


def seed_input(tooltip: str, default: int = 0, images: int = MAX_COUNT) -> io.Int.Input:
    """A seed that leaves room for one more an image of a batch."""
    return io.Int.Input(
        "seed", default=default, min=0, max=MAX_SEED - images, control_after_generate=True, tooltip=tooltip
    )


def token_sampling_inputs() -> list[io.Float.Input]:
    """How the planner samples its tokens."""
    return [
        io.Float.Input(
            "temperature",
            default=0.9,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Sampling temperature; 0 always takes the likeliest token, which this model does badly.",
        ),
        io.Float.Input(
            "top_p",
            default=0.75,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Only the likeliest tokens whose probabilities add up to this are sampled.",
        ),
    ]


def steps_input() -> io.Int.Input:
    return io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Denoising steps: passes through the decoder.")


def reference_inputs(tooltip: str) -> list[io.Image.Input]:
    return [io.Image.Input(f"reference_{i + 1}", optional=True, tooltip=tooltip) for i in range(REFERENCES)]


def reference_images(inputs: dict) -> list[torch.Tensor]:
    """Connected `reference_N` inputs in order -> (H, W, 3) images, every one of each batch."""
    batches = [inputs[name] for name in sorted(inputs) if inputs[name] is not None]
    return [image[..., :3] for batch in batches for image in batch]
