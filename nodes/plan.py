"""GLM-Image Plan, and plans to and from files."""

import hashlib
import os
from functools import partial
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageOps

from ..pipeline.errors import InputError
from ..pipeline.geometry import LATENT, TrainedSizes, check_size
from ..pipeline.plan import MAX_PLAN_ROWS, Plan, is_plan
from ..pipeline.planning.image_plan import fitted
from ..pipeline.planning.preview import plan_images, plan_sheet
from ..pipeline.text import check_prompt, shown
from . import sockets
from .comfyui.images import to_image, to_pil
from .comfyui.page import show
from .comfyui.planning import make_plan, plan_of_images, remember
from .inputs import MAX_COUNT, MENU, reference_images, reference_inputs, seed_input, size_inputs, token_sampling_inputs

MEGAPIXEL = 1024 * 1024


def check_own_size(height: int, width: int) -> None:
    """Refuse a size that no plan has, unless the size is left to the node (both 0)."""
    if height or width:
        check_size(height, width)


class GLMImagePlan(io.ComfyNode):
    checks = (check_own_size, check_prompt)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImagePlan",
            display_name="GLM-Image Plan",
            category=MENU,
            description="Plans images as tokens of 32 px with the language model. Quote the texts to render.",
            inputs=[
                sockets.Planner.Input("planner", tooltip="The planner of Load GLM-Image, guided by a layout or not."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to show; put texts that must appear in quotes.",
                ),
                *size_inputs(least=0, more=" 0 for both: the first reference's shape, or a square."),
                seed_input("Seed of the plan; image k of a batch uses seed + k."),
                *token_sampling_inputs(),
                io.Int.Input(
                    "count", default=1, min=1, max=MAX_COUNT, tooltip="Plans to make at once, each with its own seed."
                ),
                *reference_inputs("Image to edit or to take subjects from; any size up to 4:1. A batch is several."),
                io.Int.Input(
                    "plan_rows",
                    default=0,
                    min=0,
                    max=MAX_PLAN_ROWS,
                    optional=True,
                    tooltip="Tokens that go through the planner together, all but one drafts to be checked. 0 is what "
                    "suits the device; 1 plans one by one, as older versions did.",
                ),
            ],
            outputs=[sockets.Plan.Output(display_name="plan")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, planner, prompt, width, height, seed, temperature, top_p, count, plan_rows=0, **references
    ) -> io.NodeOutput:
        images = reference_images(references)
        if not (width or height):
            height, width = planner.trained_sizes.like(*(images[0].shape[:2] if images else (1, 1)))
        said = show(size_report(planner.trained_sizes, height, width), cls.hidden.unique_id)
        choices = {"seed": seed, "count": count, "temperature": temperature, "top_p": top_p}
        choices["plan_rows"] = plan_rows or None
        settings = (prompt, height, width, *choices.values(), planner.guide, planner.used_loras, *map(digest, images))
        make = partial(make_plan, planner, prompt, height, width, **choices, images=images)
        return io.NodeOutput(remember(planner, settings, make), ui=said)


def size_report(known: TrainedSizes, height: int, width: int) -> str:
    """The size that is made, and what to say if it was never trained."""
    warning = known.warning(height, width)
    return f"{width}x{height} px" if warning is None else f"{width}x{height} px\nWarning: {warning}"


def digest(image: torch.Tensor) -> tuple[torch.Size, bytes]:
    """Tells images apart."""
    return image.shape, hashlib.sha256(image.cpu().float().contiguous().numpy().tobytes()).digest()


class GLMImagePlanFromImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImagePlanFromImage",
            display_name="GLM-Image Plan from Image",
            category=MENU,
            description="Reads an image as a plan, so that image-to-image and inpainting agree with their image.",
            inputs=[
                sockets.Planner.Input("planner", tooltip="The planner of Load GLM-Image; its vision tokenizer reads."),
                io.Image.Input(
                    "image", tooltip="An image of any size up to 16:1; a batch is a plan with several rows."
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="Put the texts that the image shows, or shall show, in quotes. The rest is not read.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=1.0,
                    min=0.0,
                    max=16.0,
                    step=0.01,
                    tooltip="Size to scale the image to, in its own shape and on multiples of 32 px; 0 keeps its size.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="What to inpaint; it is fitted as the image is."),
            ],
            outputs=[
                sockets.Plan.Output(display_name="plan"),
                io.Image.Output(display_name="image", tooltip="The image in the plan's size, for VAE Encode."),
                io.Mask.Output(display_name="mask", tooltip="The mask in the same size; without one, all of it."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, planner, image, prompt, megapixels, mask=None) -> io.NodeOutput:
        images = [fitted(to_pil(one), round(megapixels * MEGAPIXEL)) for one in image]
        plan = plan_of_images(planner, images, prompt)
        mask = torch.ones(1, *image.shape[1:3]) if mask is None else mask
        said = show(size_report(planner.trained_sizes, plan.height, plan.width), cls.hidden.unique_id)
        fit = torch.cat([to_image(one) for one in images])
        return io.NodeOutput(plan, fit, fitted_mask(mask, image, plan), ui=said)


def fitted_mask(mask: torch.Tensor, image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """A mask (B, h, w) or (h, w) over an image (B, H, W, 3) -> (B, plan height, plan width), cut as the image was."""
    masks = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    whole = torch.nn.functional.interpolate(masks, image.shape[1:3], mode="bilinear")[:, 0]
    size = (plan.width, plan.height)
    cut = [ImageOps.fit(Image.fromarray(one.numpy()), size, Image.Resampling.BILINEAR) for one in whole]
    return torch.stack([torch.from_numpy(np.array(one)) for one in cut]).clamp(0, 1)


class GLMImagePlanPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImagePlanPreview",
            display_name="GLM-Image Plan Preview",
            category=MENU,
            description="Shows plans as tokens of 32 px, in the colours of what they look like; several as one sheet.",
            inputs=[
                sockets.Planner.Input(
                    "planner", tooltip="The planner that made the plan; it knows what its tokens look like."
                ),
                sockets.Plan.Input("plan", tooltip="The plan to look at."),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, planner, plan) -> io.NodeOutput:
        check_same_codebook(planner, plan)
        colours = planner.codebook_colours
        shown = ui.PreviewImage(plan_sheet(plan, colours), cls=cls)
        return io.NodeOutput(plan_images(plan, colours), ui=shown)


class GLMImageResizePlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageResizePlan",
            display_name="Resize GLM-Image Plan",
            category=MENU,
            description="Stretches a plan's tokens to another size, so that a second sampler can render it there.",
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan to stretch."),
                *size_inputs(),
                io.Latent.Input("latent", optional=True, tooltip="Its size in place of width and height."),
            ],
            outputs=[sockets.Plan.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, plan, width, height, latent=None) -> io.NodeOutput:
        if latent is not None:
            height, width = (LATENT * side for side in latent["samples"].shape[-2:])
        return io.NodeOutput(plan.resized(height, width))


def check_prefix(filename_prefix: str) -> None:
    """Refuse a path that leaves the output folder; ComfyUI says so in four lines with the server's paths in them."""
    root = os.path.abspath(folder_paths.get_output_directory())
    folder = os.path.abspath(os.path.join(root, os.path.dirname(os.path.normpath(filename_prefix))))
    if os.path.commonpath((root, folder)) != root:
        raise InputError(f"filename_prefix {shown(filename_prefix)} leaves the output folder; give a path below it")


class GLMImageSavePlan(io.ComfyNode):
    checks = (check_prefix,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageSavePlan",
            display_name="Save GLM-Image Plan",
            category=MENU,
            description="Writes a plan to the output folder, to decode it later or elsewhere.",
            inputs=[
                sockets.Plan.Input("plan", tooltip="The plan to keep."),
                io.String.Input("filename_prefix", default="plans/plan", tooltip="Path below the output folder."),
            ],
            outputs=[sockets.Plan.Output(display_name="plan")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, plan, filename_prefix) -> io.NodeOutput:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}_.safetensors"
        plan.save(Path(folder) / file)
        saved = {"filename": file, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(plan, ui={"plans": [saved]})


class GLMImageLoadPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLoadPlan",
            display_name="Load GLM-Image Plan",
            category=MENU,
            description="Reads a plan from the input or the output folder.",
            inputs=[
                io.Combo.Input(
                    "plan", options=plan_files(), tooltip="A .safetensors plan in ComfyUI's input or output folder."
                )
            ],
            outputs=[sockets.Plan.Output(display_name="plan")],
        )

    @classmethod
    def execute(cls, plan) -> io.NodeOutput:
        return io.NodeOutput(Plan.load(plan_path(plan)))

    @classmethod
    def fingerprint_inputs(cls, plan):
        path = plan_path(plan)
        return path.stat().st_mtime_ns if path.is_file() else None


def plan_files() -> list[str]:
    """`input/...` and `output/...` names of the plans there; other safetensors files are not listed."""
    return [
        f"{kind}/{path.relative_to(root).as_posix()}"
        for kind, root in _plan_roots().items()
        for path in sorted(root.rglob("*.safetensors"))
        if is_plan(path)
    ]


def plan_path(name: str) -> Path:
    """Path of a name from `plan_files`; nothing outside those folders is read."""
    kind, _, rest = name.partition("/")
    roots = _plan_roots()
    if kind in roots:
        path = (roots[kind] / rest).resolve()
        if path.is_relative_to(roots[kind].resolve()):
            return path
    raise InputError(f"plan {name!r} is not in the input or output folder; choose one from the list")


def _plan_roots() -> dict[str, Path]:
    return {
        "input": Path(folder_paths.get_input_directory()),
        "output": Path(folder_paths.get_output_directory()),
    }


def check_same_codebook(planner, plan) -> None:
    if planner.codebook_size != plan.codebook_size:
        raise InputError(
            f"the plan uses a codebook of {plan.codebook_size} tokens, this planner one of {planner.codebook_size}; "
            "use the planner of the checkpoint it was made with"
        )
