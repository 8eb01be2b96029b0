"""GLM-Image Remote: the same prompt, layout and references on a serving engine or the hosted API."""

import asyncio
import logging
import threading

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from PIL import Image

from ..pipeline import remote
from ..pipeline.errors import presentable
from ..pipeline.remote.limits import (
    AUTO,
    ENGINE_NAMES,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_PARALLEL,
    MAX_SEED,
    MAX_STEPS,
    MAX_USD,
)
from ..pipeline.text import check_prompt
from .comfyui.images import to_image, to_pil
from .comfyui.page import LONGEST, show
from .inputs import REFERENCES, lines, reference_images, size_inputs

STOP, KEEP = "stop", "keep what arrived"


def _server_inputs() -> list:
    """Which server, and how it is spoken to."""
    return [
        io.String.Input(
            "server",
            default="http://127.0.0.1:8091",
            tooltip="Address of the server, such as http://127.0.0.1:8091 or https://api.z.ai; several with "
            "commas between them share the work.",
        ),
        io.Combo.Input(
            "engine",
            options=[AUTO, *ENGINE_NAMES],
            default=AUTO,
            tooltip="Protocol of the server; auto asks it. vllm-omni uses its images form, and its chat form "
            "for edits; vllm-omni-chat the chat form for both; zai-async a task, then its result.",
        ),
    ]


def _generation_inputs() -> list:
    """What is generated, as on this machine."""
    return [
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What to draw; put texts that must appear in quotes.",
        ),
        *size_inputs(),
        io.Int.Input(
            "steps",
            default=50,
            min=0,
            max=MAX_STEPS,
            tooltip="Passes through the decoder; 0 is the release's 50. The hosted API takes none.",
        ),
        io.Float.Input(
            "guidance",
            default=1.5,
            min=0.0,
            max=MAX_GUIDANCE,
            step=0.1,
            tooltip="Guidance scale; 0 is the release's 1.5. The hosted API takes none.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED - MAX_COUNT,
            control_after_generate=True,
            tooltip="Image k of a batch uses seed + k. The hosted API takes none.",
        ),
    ]


def _run_inputs() -> list:
    """How requests are sent, and what a run may cost."""
    return [
        io.Int.Input("count", default=1, min=1, max=MAX_COUNT, tooltip="Images to draw, one request each."),
        io.Int.Input("parallel", default=4, min=1, max=MAX_PARALLEL, tooltip="Requests at once."),
        io.Float.Input(
            "timeout",
            default=600.0,
            min=1.0,
            max=7200.0,
            step=1.0,
            tooltip="Seconds for one try at one image, waiting in the server's queue included.",
        ),
        io.Float.Input(
            "max_cost",
            default=MAX_USD,
            min=0.0,
            max=1000.0,
            step=0.01,
            tooltip="US dollars a run may cost on the hosted API; a dearer batch is not sent.",
        ),
        io.Combo.Input(
            "on_error",
            options=[STOP, KEEP],
            default=STOP,
            tooltip="When an image of a batch fails: stop with its error, or give the others and say which "
            "one is missing in the report.",
        ),
    ]


def _optional_inputs() -> list:
    """Texts and references."""
    return [
        io.String.Input(
            "glyph_texts",
            default="",
            force_input=True,
            optional=True,
            tooltip="Texts to draw, one a line; those the prompt does not quote are added to it.",
        ),
        *(
            io.Image.Input(
                f"reference_{i + 1}",
                optional=True,
                tooltip="Image to edit or to take subjects from. vLLM-Omni takes one and shows it to its "
                "planner only; SGLang 0.5.22 and 0.5.23 fail on edits; the hosted API takes none.",
            )
            for i in range(REFERENCES)
        ),
    ]


class GLMImageRemote(io.ComfyNode):
    checks = (check_prompt,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageRemote",
            display_name="GLM-Image Remote",
            category="GLM-Image",
            description="Draws on a server: vLLM-Omni, SGLang, or the hosted API of z.ai. Keys come from the "
            "environment or a private file, never from the graph.",
            inputs=[*_server_inputs(), *_generation_inputs(), *_run_inputs(), *_optional_inputs()],
            outputs=[
                io.Image.Output(display_name="images"),
                io.String.Output(
                    display_name="report", tooltip="Who drew what, what it cost, and which settings had no effect."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(
        cls,
        server,
        engine,
        prompt,
        width,
        height,
        steps,
        guidance,
        seed,
        count,
        parallel,
        timeout,
        max_cost,
        on_error,
        glyph_texts="",
        **references,
    ) -> io.NodeOutput:
        job = remote.Job(
            prompt,
            server,
            width,
            height,
            engine=engine,
            count=count,
            seed=seed,
            steps=steps or None,
            guidance=guidance or None,
            references=[to_pil(image) for image in reference_images(references)],
            texts=lines(glyph_texts),
            parallel=parallel,
            seconds=timeout,
            max_usd=max_cost,
            keep_going=on_error == KEEP,
        )
        generated = await _in_thread(job, cls.hidden.unique_id)
        return io.NodeOutput(
            to_batch(generated.images), generated.report, ui=show(generated.report, cls.hidden.unique_id)
        )


async def _in_thread(job, node_id: str):
    """Run the job beside ComfyUI's loop; an interruption, or another node's error that ends the prompt, ends it too."""
    ended = threading.Event()
    bar = comfy.utils.ProgressBar(job.count, node_id)

    def tell(text: str) -> None:
        logging.info("GLM-Image Remote: %s", presentable(text.replace("\n", "; "), LONGEST))
        show(text, node_id)

    def cancelled() -> bool:
        return ended.is_set() or comfy.model_management.processing_interrupted()

    try:
        generated = await asyncio.to_thread(remote.generate, job, tell, bar.update_absolute, cancelled)
    except remote.CancelledError:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise comfy.model_management.InterruptProcessingException() from None
    finally:
        ended.set()
    tell(generated.report)
    return generated


def to_batch(images: list[Image.Image]) -> torch.Tensor:
    """(B, H, W, 3) in 0..1, all in the first image's size; the report names the sizes that came."""
    size = images[0].size
    return torch.cat([to_image(p if p.size == size else p.resize(size, Image.Resampling.LANCZOS)) for p in images])
