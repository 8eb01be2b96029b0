"""Load GLM-Image: the whole checkpoint in one node, or component by component with a dtype, a device and a file each.

The first node expands into the other four, so that ComfyUI caches each component by its own inputs: changing the dtype
of one leaves the others loaded.
"""

from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from . import sockets
from .comfyui import model_folders
from .comfyui.loading import Devices
from .comfyui.model import open_decoder
from .comfyui.planner import GlyphEncoderPart, PlannerPart
from .comfyui.vae import open_vae
from .inputs import (
    LOADERS,
    device_input,
    dtype_input,
    model_input,
    rounded_dtype_input,
    vae_dtype_input,
    weights_input,
)


def is_there(model: str) -> None:
    """Refuse a checkpoint that is offered and not downloaded yet, with the way to get it."""
    model_folders.model_folder(model)


class GLMImageLoader(io.ComfyNode):
    checks = (is_there,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageLoader",
            display_name="Load GLM-Image",
            category=LOADERS,
            description="Opens a GLM-Image checkpoint. Weights are read when first used.",
            inputs=[
                model_input(),
                rounded_dtype_input("decoder_dtype", "the decoder's weights"),
                rounded_dtype_input("planner_dtype", "the planner's weights"),
                device_input(),
                sockets.Devices.Input(
                    "devices",
                    optional=True,
                    tooltip="A device for each component, from GLM-Image Devices; device is not read then.",
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
        model_folders.model_folder(model)
        where = devices or Devices.one(device)
        graph, file = GraphBuilder(), {"model": model, "weights": model_folders.FROM_FOLDER}
        components = [
            graph.node("GLMImagePlannerLoader", **file, dtype=planner_dtype, device=where.planner),
            graph.node("GLMImageDecoderLoader", **file, dtype=decoder_dtype, device=where.decoder),
            graph.node("GLMImageGlyphEncoderLoader", **file, dtype="auto", device=where.glyph_encoder),
            graph.node("GLMImageVAELoader", **file, dtype="auto", device=where.vae),
        ]
        return io.NodeOutput(*(component.out(0) for component in components), expand=graph.finalize())

    @classmethod
    def fingerprint_inputs(cls, model, **_):
        return model_folders.state_of(model_folders.find_folder(model))


class ComponentLoader(io.ComfyNode):
    """Opens one component of a checkpoint: its `component` folder, or a single file in models/`files` for it."""

    node_id: str
    display_name: str
    description: str
    component: str
    files: str
    output: io.Output
    dtype_input = staticmethod(dtype_input)
    may_lack_weights = False  # whether graphs without that input exist
    checks = (is_there,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=cls.node_id,
            display_name=cls.display_name,
            category=LOADERS,
            description=cls.description,
            inputs=[
                model_input(),
                cls.dtype_input(),
                device_input(),
                weights_input(cls.files, optional=cls.may_lack_weights),
            ],
            outputs=[cls.output],
        )

    @classmethod
    def execute(cls, model, dtype, device, weights=model_folders.FROM_FOLDER) -> io.NodeOutput:
        return io.NodeOutput(cls.open(model_folders.model_folder(model), cls.path(model, weights), dtype, device))

    @classmethod
    def fingerprint_inputs(cls, model, weights=model_folders.FROM_FOLDER, **_):
        return model_folders.state_of(cls.path(model, weights))

    @classmethod
    def path(cls, model: str, weights: str) -> Path:
        return model_folders.weight_path(cls.files, weights, model_folders.find_folder(model) / cls.component)

    @classmethod
    def open(cls, folder: Path, path: Path, dtype: str, device: str):
        """Checkpoint folder and the weights in it, or elsewhere -> the socket's value."""
        raise NotImplementedError


class GLMImagePlannerLoader(ComponentLoader):
    node_id = "GLMImagePlannerLoader"
    display_name = "Load GLM-Image Planner"
    description = "Opens the language model that plans an image as tokens."
    component, files = "vision_language_encoder", "text_encoders"
    may_lack_weights = True
    dtype_input = staticmethod(rounded_dtype_input)
    output = sockets.Planner.Output(display_name="planner")

    @classmethod
    def open(cls, folder, path, dtype, device):
        return PlannerPart(folder, path, dtype, device)


class GLMImageDecoderLoader(ComponentLoader):
    node_id = "GLMImageDecoderLoader"
    display_name = "Load GLM-Image Decoder"
    description = "Opens the diffusion decoder as a MODEL for any sampler, LoRA or model patch."
    component, files = "transformer", "diffusion_models"
    dtype_input = staticmethod(rounded_dtype_input)
    output = io.Model.Output(display_name="model")

    @classmethod
    def open(cls, folder, path, dtype, device):
        return open_decoder(folder, path, dtype, device)


class GLMImageGlyphEncoderLoader(ComponentLoader):
    node_id = "GLMImageGlyphEncoderLoader"
    display_name = "Load GLM-Image Glyph Encoder"
    description = "Opens the encoder of the texts to render."
    component, files = "text_encoder", "text_encoders"
    output = sockets.GlyphEncoder.Output(display_name="glyph_encoder")

    @classmethod
    def open(cls, folder, path, dtype, device):
        return GlyphEncoderPart(folder, path, dtype, device)


class GLMImageVAELoader(ComponentLoader):
    node_id = "GLMImageVAELoader"
    display_name = "Load GLM-Image VAE"
    description = "Opens the autoencoder for VAE Decode, VAE Encode and their tiled forms."
    component, files = "vae", "vae"
    output = io.Vae.Output(display_name="vae")
    dtype_input = staticmethod(vae_dtype_input)

    @classmethod
    def open(cls, folder, path, dtype, device):
        return open_vae(folder, path, dtype, device)
