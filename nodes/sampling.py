"""Sampling with GLM-Image: the decoder in one node, and the pieces for graphs of one's own."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io

from ..pipeline.denoising.conditioning import sample_noise
from ..pipeline.denoising.scheduler import schedule
from ..pipeline.errors import InputError
from ..pipeline.geometry import check_size, latent_size
from . import sockets
from .comfyui.model import GlmImageModel, has_own_sampling, shift_times, with_shift
from .comfyui.page import show
from .comfyui.validation import CHANNELS
from .inputs import MAX_COUNT, MENU, SAMPLING, seed_input, size_inputs, steps_input

MAX_IMAGES = MAX_COUNT * MAX_COUNT


def glm_model(model) -> GlmImageModel:
    """The model inside a MODEL; another kind of model is an error."""
    if not isinstance(model.model, GlmImageModel):
        raise InputError(f"this is a {type(model.model).__name__} model; connect the model of Load GLM-Image")
    return model.model


def sigmas_for(model, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """Sigmas (steps + 1,) for this MODEL: plain times that sampling will shift, or shifted as a node has set it."""
    total = max(steps, int(steps / denoise)) if denoise > 0 else 0
    if not total:
        return torch.FloatTensor([])
    config = glm_model(model).model_config.scheduler
    times = (schedule(config, total, 1).timesteps + 1) / config.num_train_timesteps
    times = torch.cat((times, times.new_zeros(1)))[-(steps + 1) :]
    if not has_own_sampling(model):
        return times
    shift = getattr(model.get_model_object("model_sampling"), "shift", None)
    if shift is None:
        raise InputError("the model's sampling has no shift that GLM-Image Sigmas could follow; remove that node")
    return shift_times(times, shift)


class GLMImageDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageDecode",
            display_name="GLM-Image Decode",
            category=MENU,
            description="Runs the diffusion decoder on a plan, on the model's own schedule. Follow with VAE Decode.",
            inputs=[
                io.Model.Input("model", tooltip="The decoder, with any LoRA or patch."),
                sockets.Plan.Input("plan", tooltip="The plan that positive was made from; gives size and batch."),
                io.Conditioning.Input("positive", tooltip="What GLM-Image Conditioning made of the plan."),
                io.Conditioning.Input("negative", tooltip="The same node's negative; read when cfg is above 1."),
                steps_input(),
                io.Float.Input(
                    "cfg",
                    default=1.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance scale; 1 leaves the negative out and takes half the time.",
                ),
                seed_input(
                    "Seed of the noise; the same plan with another seed keeps its composition. Image k of a batch uses "
                    "seed + k.",
                    images=MAX_IMAGES,
                ),
                io.Int.Input(
                    "images_per_plan",
                    default=1,
                    min=1,
                    max=MAX_COUNT,
                    tooltip="Images of each plan, each with its own noise.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, model, plan, positive, negative, steps, cfg, seed, images_per_plan) -> io.NodeOutput:
        glm_model(model)
        check_same_plan(plan, positive)
        empty = empty_latent(plan.height, plan.width, len(plan) * images_per_plan)
        samples = comfy.sample.sample_custom(
            model,
            sample_noise(empty.shape, seed),
            cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas_for(model, steps),
            positive,
            negative,
            empty,
            callback=latent_preview.prepare_callback(model, steps),
            seed=seed,
        )
        return io.NodeOutput({"samples": samples})


def check_same_plan(plan, positive: list) -> None:
    for _, entry in positive:
        given = entry.get("prior_token_ids")
        if given is not None and not torch.equal(given, plan.prior_token_ids):
            raise InputError("positive was made from another plan; connect the same plan to GLM-Image Conditioning")


class ModelSamplingGLMImage(io.ComfyNode):
    checks = (check_size,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ModelSamplingGLMImage",
            display_name="ModelSampling GLM-Image",
            category=SAMPLING,
            description="Fixes the noise schedule's shift. Without this node it follows the latent's size by itself.",
            inputs=[
                io.Model.Input("model", tooltip="The decoder."),
                *size_inputs(),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Shift of your choice; 0 takes the one the model was trained with at this size.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, width, height, shift) -> io.NodeOutput:
        check_size(height, width)
        own = glm_model(model).shift_for(latent_size(height, width))
        return io.NodeOutput(with_shift(model, shift or own))


class GLMImageSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageSigmas",
            display_name="GLM-Image Sigmas",
            category=SAMPLING,
            description="The original code's noise schedule, exactly, for SamplerCustom and SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will sample, after its ModelSampling node if it has one."
                ),
                steps_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the schedule to run: less than 1 keeps some of the latent that is given.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(cls, model, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(sigmas_for(model, steps, denoise))


class EmptyGLMImageLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EmptyGLMImageLatent",
            display_name="Empty GLM-Image Latent",
            category=MENU,
            description="An empty latent for KSampler, of the plan's size or of a size in steps of 32 px.",
            inputs=[
                *size_inputs(),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=MAX_IMAGES,
                    tooltip="Images; with a plan connected, images of each of its plans.",
                ),
                sockets.Plan.Input("plan", optional=True, tooltip="Its size in place of width and height."),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, width, height, batch_size, plan=None) -> io.NodeOutput:
        if plan is not None:
            width, height, batch_size = plan.width, plan.height, len(plan) * batch_size
        check_size(height, width)
        latent = {"samples": empty_latent(height, width, batch_size)}
        images = f"{batch_size} images" if batch_size > 1 else "1 image"
        return io.NodeOutput(latent, ui=show(f"{images} of {width}x{height} px", cls.hidden.unique_id))


def empty_latent(height: int, width: int, batch: int) -> torch.Tensor:
    """Pixels -> zeros (batch, 16, height / 8, width / 8)."""
    device = comfy.model_management.intermediate_device()
    return torch.zeros(batch, CHANNELS, *latent_size(height, width), device=device)
