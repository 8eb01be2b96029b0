"""GLM-Image Devices: a device for each component, and whether it all fits, reported before anything is loaded."""

from pathlib import Path

from comfy_api.latest import io

from ..pipeline.loading.checkpoint import DECODER, MODEL_FOLDERS, PLANNER
from ..pipeline.loading.work_needs import ImageBatch
from ..pipeline.planning.references import reference_grids
from . import sockets
from .comfyui import model_folders
from .comfyui.loading import Devices
from .comfyui.memory import choose_all, describe, read_sizes
from .comfyui.page import show
from .inputs import (
    LOADERS,
    MAX_COUNT,
    device_input,
    model_input,
    rounded_dtype_input,
    size_inputs,
    weights_input,
)

MAX_REFERENCES = 16  # any number may come by batches; more are slow on every device


class GLMImageDevices(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageDevices",
            display_name="GLM-Image Devices",
            category=LOADERS,
            description="Chooses a device for each component, and reports before anything is loaded whether all fits.",
            inputs=[
                model_input(),
                device_input("planner_device", "the planner computes"),
                device_input("decoder_device", "the decoder computes"),
                device_input("glyph_encoder_device", "the glyph encoder computes"),
                device_input("vae_device", "the VAE computes"),
                *size_inputs(),
                io.Int.Input("count", default=1, min=1, max=MAX_COUNT, tooltip="Images at once."),
                rounded_dtype_input("decoder_dtype", "the decoder's weights, as in Load GLM-Image"),
                rounded_dtype_input("planner_dtype", "the planner's weights, as in Load GLM-Image"),
                weights_input(MODEL_FOLDERS[PLANNER], optional=True, name="planner_weights"),
                weights_input(MODEL_FOLDERS[DECODER], optional=True, name="decoder_weights"),
                io.Int.Input(
                    "references",
                    default=0,
                    min=0,
                    max=MAX_REFERENCES,
                    optional=True,
                    tooltip="Reference images of GLM-Image Plan, counted at the size of the image.",
                ),
            ],
            outputs=[
                sockets.Devices.Output(display_name="devices"),
                io.String.Output(
                    display_name="estimate", tooltip="Memory of each component and device, and whether it fits."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        planner_device,
        decoder_device,
        glyph_encoder_device,
        vae_device,
        width,
        height,
        count,
        decoder_dtype,
        planner_dtype,
        planner_weights=model_folders.FROM_FOLDER,
        decoder_weights=model_folders.FROM_FOLDER,
        references=0,
    ) -> io.NodeOutput:
        where = Devices(planner_device, decoder_device, glyph_encoder_device, vae_device)
        files = single_files(planner_weights, decoder_weights)
        sizes, folder = read_sizes(model, files)
        grids = reference_grids([(height, width)] * references, folder)
        images = ImageBatch(height, width, count, grids)
        chosen, needs = choose_all(sizes, where, planner_dtype, decoder_dtype, images)
        text = describe(f"{model.removesuffix(f'/{model_folders.INDEX}')}, {images}", chosen, needs)
        return io.NodeOutput(where, text, ui=show(text, cls.hidden.unique_id))

    @classmethod
    def fingerprint_inputs(
        cls, model, planner_weights=model_folders.FROM_FOLDER, decoder_weights=model_folders.FROM_FOLDER, **_
    ):
        files = single_files(planner_weights, decoder_weights).values()
        return [model_folders.state_of(path) for path in (model_folders.find_folder(model), *files)]


def single_files(planner: str, decoder: str) -> dict[str, Path]:
    """Component -> the file that was chosen in place of the checkpoint's own weights."""
    chosen = {PLANNER: planner, DECODER: decoder}
    return {
        name: model_folders.weight_path(MODEL_FOLDERS[name], file, Path())
        for name, file in chosen.items()
        if file != model_folders.FROM_FOLDER
    }
