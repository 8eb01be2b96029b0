"""OCR of generated images: GLM-Image Read Text and Best of N."""

import json

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw

from ..pipeline.errors import InputError
from ..pipeline.evaluation.ocr import ENGINES, Score, Word, read_words, score_layout, score_texts
from ..pipeline.layout.regions import Layout
from . import sockets
from .comfyui.images import to_image, to_pil
from .inputs import LAYOUT, lines


def reading_inputs() -> list:
    return [
        sockets.Layout.Input(
            "layout", optional=True, tooltip="What should stand where; scores words and their places."
        ),
        io.String.Input(
            "texts",
            default="",
            multiline=True,
            optional=True,
            tooltip="What should be read, one text a line, when no layout is connected.",
        ),
        io.Combo.Input(
            "engine",
            options=list(ENGINES),
            default="auto",
            optional=True,
            tooltip="tesseract needs the program and `pip install pytesseract`; rapidocr `pip install rapidocr "
            "onnxruntime`.",
        ),
        io.String.Input(
            "languages", default="eng", optional=True, tooltip="tesseract's languages, such as eng+chi_sim."
        ),
    ]


def read_batch(images: torch.Tensor, engine: str, languages: str) -> list[list[Word]]:
    """Words of every image of a batch, with progress and interruption between images."""
    bar = comfy.utils.ProgressBar(len(images))
    found = []
    for image in images:
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(read_words(to_pil(image), engine, languages))
        bar.update(1)
    return found


def scores_of(words: list[list[Word]], layout: Layout | None, texts: str) -> list[Score]:
    if layout is not None:
        return [score_layout(layout, found) for found in words]
    return [score_texts(lines(texts), found) for found in words]


class GLMImageReadText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageReadText",
            display_name="GLM-Image Read Text",
            category=LAYOUT,
            description="Reads words and their boxes from images by OCR and scores them against a layout or texts.",
            inputs=[io.Image.Input("images"), *reading_inputs()],
            outputs=[
                io.String.Output(
                    display_name="text", tooltip="Words of each image in reading order, one image a line."
                ),
                io.String.Output(display_name="words", tooltip="JSON: for each image, words with boxes in fractions."),
                io.Float.Output(
                    display_name="accuracy", tooltip="Share of the words asked for that were read exactly."
                ),
                io.Float.Output(display_name="ned", tooltip="Mean similarity of words, 1 is equal."),
                io.Float.Output(display_name="placement", tooltip="Share of words whose centre lies in their box."),
                io.Image.Output(display_name="marked", tooltip="The images with the boxes of the words read."),
            ],
        )

    @classmethod
    def execute(cls, images, layout=None, texts="", engine="auto", languages="eng") -> io.NodeOutput:
        words = read_batch(images, engine, languages)
        scores = scores_of(words, layout, texts)
        listed = [[vars(word) for word in found] for found in words]
        text = "\n".join(" ".join(word.text for word in found) for found in words)
        means = [sum(getattr(s, name) for s in scores) / len(scores) for name in ("accuracy", "ned", "placement")]
        marked = torch.cat([to_image(mark(to_pil(image), found)) for image, found in zip(images, words)])
        return io.NodeOutput(text, json.dumps(listed, ensure_ascii=False), *means, marked)


def mark(image: Image.Image, words: list[Word]) -> Image.Image:
    """The image with the box of every word read."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for word in words:
        box = (word.x * width, word.y * height, (word.x + word.width) * width, (word.y + word.height) * height)
        draw.rectangle(box, outline=(224, 47, 176), width=max(1, width // 300))
    return image


class GLMImageBestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageBestOfN",
            display_name="GLM-Image Best of N",
            category=LAYOUT,
            description="Ranks a batch by how well its texts can be read, and gives the best images first.",
            inputs=[
                io.Image.Input("images"),
                io.Int.Input("keep", default=1, min=1, max=64, tooltip="How many of the best images to give."),
                *reading_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="best"),
                io.Int.Output(display_name="index", tooltip="Number of the best image in the batch, from 0."),
                io.String.Output(display_name="ranking", tooltip="One line an image, best first."),
            ],
        )

    @classmethod
    def execute(cls, images, keep, layout=None, texts="", engine="auto", languages="eng") -> io.NodeOutput:
        if layout is None and not lines(texts):
            raise InputError("nothing to rank by; connect a layout or write the texts that should be read")
        scores = scores_of(read_batch(images, engine, languages), layout, texts)
        order = sorted(range(len(scores)), key=lambda i: rank(scores[i]), reverse=True)
        ranking = "\n".join(
            f"image {i}: {scores[i].correct} of {scores[i].words} words, NED {scores[i].ned:.3f}, "
            f"{scores[i].placed} in their box"
            for i in order
        )
        return io.NodeOutput(images[order[:keep]], order[0], ranking)


def rank(score: Score) -> tuple[float, float, float]:
    """More words right, then more of them in place, then closer spellings."""
    return score.accuracy, score.placement, score.ned
