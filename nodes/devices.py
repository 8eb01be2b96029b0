"""GLM-Image Devices: a device for each component, and whether it all fits, reported before anything is loaded."""

from comfy_api.latest import io

from . import sockets
from .comfyui import model_folders
from .comfyui.loading import Devices
from .comfyui.memory import choose_all, describe
from .comfyui.page import show
from .inputs import LOADERS, MAX_COUNT, device_input, model_input, rounded_dtype_input, size_inputs


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
    ) -> io.NodeOutput:
        where = Devices(planner_device, decoder_device, glyph_encoder_device, vae_device)
        chosen, needs = choose_all(model, where, planner_dtype, decoder_dtype, height, width, count)
        images = f"{count} images" if count > 1 else "1 image"
        text = describe(
            f"{model.removesuffix(f'/{model_folders.INDEX}')}, {images} of {width}x{height} px", chosen, needs
        )
        return io.NodeOutput(where, text, ui=show(text, cls.hidden.unique_id))

    @classmethod
    def fingerprint_inputs(cls, model, **_):
        return model_folders.state_of(model_folders.find_folder(model))
