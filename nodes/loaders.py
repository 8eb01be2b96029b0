"""Load GLM-Image: the whole checkpoint in one node, or part by part with a dtype, a device and a weight file each.

The first node expands into the other four, so that ComfyUI caches each part by its own inputs: changing the dtype of
one leaves the others loaded.
"""

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..pipeline.devices.device import available_devices
from . import sockets
from .comfyui import model_folders as folders
from .comfyui.loading import DTYPES, Devices
from .comfyui.model import open_decoder
from .comfyui.planner import GlyphEncoderPart, PlannerPart
from .comfyui.vae import open_vae

CATEGORY = "GLM-Image/loaders"
PART_DTYPES = ["auto", *DTYPES]
VAE_DTYPES = ["auto", "bf16", "fp32"]


def device_names() -> list[str]:
    """`auto` (ComfyUI's own choice), every accelerator and the CPU."""
    return ["auto", *map(str, available_devices())]


def model_input() -> io.Combo.Input:
    return io.Combo.Input(
        "model",
        options=folders.model_names(),
        default=folders.BUNDLED,
        tooltip="A checkpoint folder in models/glm_image, or the small one that comes with this pack.",
    )


def dtype_input(name: str = "dtype", what: str = "the weights") -> io.Combo.Input:
    return io.Combo.Input(
        name,
        options=PART_DTYPES,
        default="auto",
        tooltip=f"Type of {what}. auto: the best the device computes in; fp8 halves the memory and costs quality.",
    )


def vae_dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "dtype",
        options=VAE_DTYPES,
        default="auto",
        tooltip="Type of the weights. auto: the best the device computes in. fp16 would give black images.",
    )


def device_input(name: str = "device", what: str = "to compute") -> io.Combo.Input:
    return io.Combo.Input(
        name, options=device_names(), default="auto", tooltip=f"Where {what}. auto: where ComfyUI does."
    )


def weights_input(kind: str) -> io.Combo.Input:
    return io.Combo.Input(
        "weights",
        options=folders.weight_names(kind),
        default=folders.FROM_FOLDER,
        tooltip=f"Weights of the checkpoint, or a single file in models/{kind} of the same architecture.",
    )


class GLMImageLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLoader",
            display_name="Load GLM-Image",
            category=CATEGORY,
            description="Opens a GLM-Image checkpoint. Weights are read when first used.",
            inputs=[
                model_input(),
                dtype_input("decoder_dtype", "the decoder's weights"),
                dtype_input("planner_dtype", "the planner's weights"),
                device_input(),
                sockets.Devices.Input(
                    "devices",
                    optional=True,
                    tooltip="A device for each part, from GLM-Image Devices; device is not read then.",
                ),
            ],
            outputs=[
                sockets.Planner.Output(display_name="planner"),
                io.Model.Output(display_name="model"),
                sockets.GlyphEncoder.Output(display_name="glyph_encoder"),
                io.Vae.Output(display_name="vae"),
            ],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, model, decoder_dtype, planner_dtype, device, devices=None) -> io.NodeOutput:
        folders.model_folder(model)
        where = devices or Devices.one(device)
        graph, file = GraphBuilder(), {"model": model, "weights": folders.FROM_FOLDER}
        parts = [
            graph.node("GLMImagePlannerLoader", model=model, dtype=planner_dtype, device=where.planner),
            graph.node("GLMImageDecoderLoader", **file, dtype=decoder_dtype, device=where.decoder),
            graph.node("GLMImageGlyphEncoderLoader", **file, dtype="auto", device=where.glyph_encoder),
            graph.node("GLMImageVAELoader", **file, dtype="auto", device=where.vae),
        ]
        return io.NodeOutput(*(part.out(0) for part in parts), expand=graph.finalize())

    @classmethod
    def fingerprint_inputs(cls, model, **_):
        return folders.state_of(folders.find_folder(model))


class GLMImagePlannerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImagePlannerLoader",
            display_name="Load GLM-Image Planner",
            category=CATEGORY,
            description="Opens the language model that lays an image out as tokens.",
            inputs=[model_input(), dtype_input(), device_input()],
            outputs=[sockets.Planner.Output(display_name="planner")],
        )

    @classmethod
    def execute(cls, model, dtype, device) -> io.NodeOutput:
        return io.NodeOutput(PlannerPart(folders.model_folder(model), dtype, device))

    @classmethod
    def fingerprint_inputs(cls, model, **_):
        return folders.state_of(folders.find_folder(model) / "vision_language_encoder")


class GLMImageDecoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageDecoderLoader",
            display_name="Load GLM-Image Decoder",
            category=CATEGORY,
            description="Opens the diffusion decoder as a MODEL for any sampler, LoRA or model patch.",
            inputs=[model_input(), dtype_input(), device_input(), weights_input("diffusion_models")],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model, dtype, device, weights) -> io.NodeOutput:
        folder = folders.model_folder(model)
        return io.NodeOutput(open_decoder(folder, cls.path(model, weights), dtype, device))

    @classmethod
    def fingerprint_inputs(cls, model, weights, **_):
        return folders.state_of(cls.path(model, weights))

    @staticmethod
    def path(model, weights):
        return folders.weight_path("diffusion_models", weights, folders.find_folder(model) / "transformer")


class GLMImageGlyphEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageGlyphEncoderLoader",
            display_name="Load GLM-Image Glyph Encoder",
            category=CATEGORY,
            description="Opens the encoder of the texts to draw.",
            inputs=[model_input(), dtype_input(), device_input(), weights_input("text_encoders")],
            outputs=[sockets.GlyphEncoder.Output(display_name="glyph_encoder")],
        )

    @classmethod
    def execute(cls, model, dtype, device, weights) -> io.NodeOutput:
        return io.NodeOutput(GlyphEncoderPart(folders.model_folder(model), cls.path(model, weights), dtype, device))

    @classmethod
    def fingerprint_inputs(cls, model, weights, **_):
        return folders.state_of(cls.path(model, weights))

    @staticmethod
    def path(model, weights):
        return folders.weight_path("text_encoders", weights, folders.find_folder(model) / "text_encoder")


class GLMImageVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageVAELoader",
            display_name="Load GLM-Image VAE",
            category=CATEGORY,
            description="Opens the autoencoder for VAE Decode, VAE Encode and their tiled forms.",
            inputs=[model_input(), vae_dtype_input(), device_input(), weights_input("vae")],
            outputs=[io.Vae.Output(display_name="vae")],
        )

    @classmethod
    def execute(cls, model, dtype, device, weights) -> io.NodeOutput:
        return io.NodeOutput(open_vae(folders.model_folder(model), cls.path(model, weights), dtype, device))

    @classmethod
    def fingerprint_inputs(cls, model, weights, **_):
        return folders.state_of(cls.path(model, weights))

    @staticmethod
    def path(model, weights):
        return folders.weight_path("vae", weights, folders.find_folder(model) / "vae")
