"""Sizes by shape, sizes off the grid, and images cut back to them."""

from comfy_api.latest import io

from ..pipeline.errors import InputError
from ..pipeline.geometry import MAX_SIDE, TrainedSizes, check_size, fitting
from . import sockets
from .comfyui.page import show
from .inputs import MENU
from .plan import size_report

RATIOS = ("1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "4:5", "3:4", "2:3", "9:16", "1:2")  # width to height
LIKE_IMAGE, OWN = "as the image", "width x height"


class GLMImageSize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageSize",
            display_name="GLM-Image Size",
            category=MENU,
            description="A size in pixels that the checkpoint was trained on, by its shape; an image's shape at about "
            "one megapixel; or any size, rounded up to the grid of 32 px. Feed it to GLM-Image Plan.",
            inputs=[
                io.Combo.Input(
                    "shape",
                    options=[*RATIOS, LIKE_IMAGE, OWN],
                    default="1:1",
                    tooltip="Width to height; the shape of the image that is connected; or width and height below.",
                ),
                *(
                    io.Int.Input(
                        side, default=1024, min=1, max=MAX_SIDE, tooltip=f"Pixels; read where shape is {OWN!r} only."
                    )
                    for side in ("width", "height")
                ),
                io.Boolean.Input(
                    "fit",
                    default=True,
                    tooltip="Round a size off the grid up; GLM-Image Cut Back cuts the image to it. Off: refuse it.",
                ),
                sockets.Planner.Input(
                    "planner", optional=True, tooltip="Whose sizes are meant; without it the release's."
                ),
                io.Image.Input("image", optional=True, tooltip="Its shape is taken where shape says so."),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="On the grid: for GLM-Image Plan."),
                io.Int.Output(display_name="height", tooltip="On the grid: for GLM-Image Plan."),
                io.Int.Output(display_name="image_width", tooltip="As asked: for GLM-Image Cut Back."),
                io.Int.Output(display_name="image_height", tooltip="As asked: for GLM-Image Cut Back."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, shape, width, height, fit, planner=None, image=None) -> io.NodeOutput:
        known = planner.trained_sizes if planner else TrainedSizes()
        asked = asked_size(shape, height, width, known, image)
        made = fitting(*asked) if fit else asked
        check_size(*made)
        said = show(size_report(known, *made), cls.hidden.unique_id)
        return io.NodeOutput(made[1], made[0], asked[1], asked[0], ui=said)


def asked_size(shape: str, height: int, width: int, known: TrainedSizes, image) -> tuple[int, int]:
    """(height, width) in pixels, off the grid only if the user's own are."""
    if shape == OWN:
        return height, width
    if shape == LIKE_IMAGE:
        if image is None:
            raise InputError(f"shape {LIKE_IMAGE!r} takes an image's; connect image, or choose another shape")
        return known.like(*image.shape[1:3])
    across, down = map(int, shape.split(":"))
    return known.nearest(down / across)


class GLMImageCutBack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageCutBack",
            display_name="GLM-Image Cut Back",
            category=MENU,
            description="The middle of images that were made larger so that they fall on the grid of 32 px. Feed it "
            "image_width and image_height of GLM-Image Size.",
            inputs=[
                io.Image.Input("images", tooltip="Of VAE Decode."),
                *(
                    io.Int.Input(side, default=1024, min=1, max=MAX_SIDE, tooltip="Pixels that stay.")
                    for side in ("width", "height")
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, width, height) -> io.NodeOutput:
        made = images.shape[1:3]
        if height > made[0] or width > made[1]:
            raise InputError(f"the images are {made[1]}x{made[0]} px, smaller than {width}x{height}; nothing to cut")
        top, left = (made[0] - height) // 2, (made[1] - width) // 2
        return io.NodeOutput(images[:, top : top + height, left : left + width])
