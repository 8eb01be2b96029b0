"""GLM-Image Text Layout: boxes drawn in the editor, and what a prompt, a sketch and the nodes behind make of them.

The editor (js/layout_widget.js) keeps its value, the layout's JSON, in the widget `layout`.
"""

from comfy_api.latest import io, ui

from ..pipeline.geometry import check_size
from ..pipeline.layout.check import MAX_OVERLAP, check, inside_page
from ..pipeline.layout.parse import read_layout
from ..pipeline.layout.prompt import QUOTES, to_prompt
from ..pipeline.layout.regions import Layout
from ..pipeline.layout.sketch import render
from . import sockets
from .comfyui.images import to_image, to_pil
from .inputs import LAYOUT, size_inputs

POSITIONS = ["words and percentages", "words"]
EXAMPLE = "title: OPEN 24h @ top 25%\nbody: Fresh bread @ middle 20%"


@io.comfytype(io_type="GLM_IMAGE_LAYOUT_EDITOR")
class LayoutEditor(io.ComfyTypeIO):
    """A widget, not a socket: the drawing surface of the node."""

    Type = str

    class Input(io.WidgetInput):
        pass


def prompt_inputs() -> list:
    """How the prompt says what stands where, and how far boxes may overlap."""
    return [
        io.Combo.Input(
            "language", options=list(QUOTES), default="english", tooltip="Language of the position phrases."
        ),
        io.Combo.Input(
            "positions",
            options=POSITIONS,
            default=POSITIONS[0],
            tooltip="How the prompt says where texts stand: in words only, or with percentages of the page.",
        ),
        io.Float.Input(
            "max_overlap",
            default=MAX_OVERLAP,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the smaller of two boxes that may be covered by the other.",
        ),
    ]


def source_inputs() -> list:
    """What may stand for the drawing, and what lies under it."""
    return [
        io.MultiType.Input(
            io.String.Input(
                "source",
                default="",
                multiline=True,
                placeholder=EXAMPLE,
                tooltip="Replaces the drawing when it is not empty: lines of text with their "
                "places (see this node's help), a layout's JSON, or the elements of Create Bounding Boxes.",
            ),
            [io.Custom("ARRAY"), io.Custom("BOUNDING_BOX"), sockets.Layout],
            optional=True,
        ),
        io.Image.Input(
            "background", optional=True, tooltip="Shown under the boxes, and used as the sketch's background."
        ),
    ]


class GLMImageTextLayout(io.ComfyNode):
    checks = (check_size,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageTextLayout",
            display_name="GLM-Image Text Layout",
            category=LAYOUT,
            description="Draw boxes and type what stands in them: gives prompt, texts, layout and sketch.",
            inputs=[
                io.String.Input(
                    "scene",
                    multiline=True,
                    dynamic_prompts=True,
                    default="A poster",
                    tooltip="What the image shows besides its texts.",
                ),
                *size_inputs(),
                *prompt_inputs(),
                LayoutEditor.Input("layout", default="", socketless=True, tooltip="The drawn boxes."),
                *source_inputs(),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="glyph_texts"),
                sockets.Layout.Output(display_name="layout"),
                io.Image.Output(display_name="sketch"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
            ],
        )

    @classmethod
    def execute(
        cls, scene, width, height, language, positions, max_overlap, layout, source=None, background=None
    ) -> io.NodeOutput:
        check_size(height, width)
        page = chosen_layout(layout, source, height, width)
        check(page, height, width, max_overlap)
        page = inside_page(page)
        prompt = to_prompt(page, scene, language, sizes=positions == POSITIONS[0])
        paper = "#ffffff" if background is None else to_pil(background[0])
        sketch = to_image(render(page, height, width, paper))
        shown = {}
        if background is not None:
            shown = {"layout_background": ui.PreviewImage(background[:1], cls=cls).values}
        return io.NodeOutput(prompt, "\n".join(page.glyph_texts()), page, sketch, width, height, ui=shown)


def chosen_layout(drawn: str, source: object, height: int, width: int) -> Layout:
    """The source when it holds something, else what was drawn."""
    if isinstance(source, Layout):
        return source
    if source is not None and source != "" and source != []:
        return read_layout(source, height, width)
    return Layout.from_json(drawn) if drawn else Layout()
