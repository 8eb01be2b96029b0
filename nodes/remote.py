"""GLM-Image Remote and Remote Plan: a prompt, layout, references or plan on a serving engine or the hosted API."""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial

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
from . import sockets
from .comfyui import model_folders
from .comfyui.images import to_image, to_pil
from .comfyui.page import LONGEST, show
from .inputs import lines, model_input, reference_images, reference_inputs, size_inputs, token_sampling_inputs

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


def _prompt_input(tooltip: str) -> io.String.Input:
    return io.String.Input("prompt", default="", multiline=True, dynamic_prompts=True, tooltip=tooltip)


def _seed_input(tooltip: str) -> io.Int.Input:
    """A seed that every server takes, for every image of a batch; fewer than this machine takes."""
    return io.Int.Input(
        "seed", default=0, min=0, max=MAX_SEED - MAX_COUNT, control_after_generate=True, tooltip=tooltip
    )


def _generation_inputs() -> list:
    """What is generated, as on this machine."""
    return [
        _prompt_input("What to draw; put texts that must appear in quotes."),
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
        _seed_input("Image k of a batch uses seed + k. The hosted API takes none."),
    ]


def _pool_inputs(product: str, count: str) -> list:
    """How many requests are sent, and how."""
    return [
        io.Int.Input("count", default=1, min=1, max=MAX_COUNT, tooltip=count),
        io.Int.Input("parallel", default=4, min=1, max=MAX_PARALLEL, tooltip="Requests at once."),
        io.Float.Input(
            "timeout",
            default=600.0,
            min=1.0,
            max=7200.0,
            step=1.0,
            tooltip=f"Seconds for one try at one {product}, waiting in the server's queue included.",
        ),
    ]


def _cost_inputs() -> list:
    """What a run may cost, and what an error ends."""
    return [
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
    """Texts, references and a plan."""
    return [
        io.String.Input(
            "glyph_texts",
            default="",
            force_input=True,
            optional=True,
            tooltip="Texts to draw, one a line; those the prompt does not quote are added to it.",
        ),
        *reference_inputs(
            "Image to edit or to take subjects from. vLLM-Omni takes one and shows it to its planner only; "
            "SGLang 0.5.22 and 0.5.23 fail on edits; the hosted API takes none."
        ),
        sockets.Plan.Input(
            "plan",
            optional=True,
            tooltip="A plan to draw in place of the server's own, on vLLM-Omni only: it brings the size and, where the "
            "prompt is empty, the prompt. One image for each plan, or count images of one.",
        ),
    ]


def check_own_prompt(prompt: str) -> None:
    """Refuse what no engine takes; an empty one may be the plan's, of which nothing is known before the graph runs."""
    check_prompt(prompt, empty=True)


class GLMImageRemote(io.ComfyNode):
    checks = (check_own_prompt,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageRemote",
            display_name="GLM-Image Remote",
            category="GLM-Image",
            description="Draws on a server: vLLM-Omni, SGLang, or the hosted API of z.ai. Keys come from the "
            "environment or a private file, never from the graph.",
            inputs=[
                *_server_inputs(),
                *_generation_inputs(),
                *_pool_inputs("image", "Images to draw, one request each."),
                *_cost_inputs(),
                *_optional_inputs(),
            ],
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
        plan=None,
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
            plans=given_plans(plan) if plan else (),
        )
        made = await _in_thread(partial(remote.generate, job), count, cls.hidden.unique_id)
        return io.NodeOutput(to_batch(made.images), made.report, ui=show(made.report, cls.hidden.unique_id))


def given_plans(plan) -> list:
    from ..pipeline.planning import remote_plan  # with the serving client, which ComfyUI need not load to start

    return remote_plan.given_plans(plan)


class GLMImageRemotePlan(io.ComfyNode):
    checks = (check_prompt,)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GLMImageRemotePlan",
            display_name="GLM-Image Remote Plan",
            category="GLM-Image",
            description="Plans on SGLang servers that hold the planner alone; the plan is drawn here. Of the "
            "checkpoint only tokenizer and settings are read.",
            inputs=[
                io.String.Input(
                    "server",
                    default="http://127.0.0.1:30001",
                    tooltip="Address of SGLang's server of the planner, such as http://127.0.0.1:30001; several with "
                    "commas between them share the work.",
                ),
                model_input(),
                _prompt_input("What to show; put texts that must appear in quotes."),
                *size_inputs(),
                _seed_input(
                    "Seed of the plan; image k of a batch uses seed + k. A server counts it only if it was "
                    "started with --enable-deterministic-inference."
                ),
                *token_sampling_inputs(),
                *_pool_inputs("plan", "Plans to make, one request each."),
            ],
            outputs=[
                sockets.Plan.Output(display_name="plan"),
                io.String.Output(display_name="report", tooltip="Who planned what, and whether seeds count."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    async def execute(
        cls, server, model, prompt, width, height, seed, temperature, top_p, count, parallel, timeout
    ) -> io.NodeOutput:
        from ..pipeline.planning.make_plan import PlannerSettings, PlanRequest
        from ..pipeline.planning.remote_plan import plan_remotely

        request = PlanRequest(prompt, height, width, (), seed, count, temperature, top_p)
        settings = PlannerSettings.from_folder(model_folders.model_folder(model))
        run = partial(plan_remotely, settings, request, server, parallel, timeout)
        made = await _in_thread(run, count, cls.hidden.unique_id)
        return io.NodeOutput(made.plan, made.report, ui=show(made.report, cls.hidden.unique_id))


async def _in_thread(run: Callable, count: int, node_id: str):
    """`run(tell, progress, cancelled)` beside ComfyUI's loop, with its report shown.

    An interruption, or another node's error that ends the prompt, ends it too.
    """
    ended = threading.Event()
    bar = comfy.utils.ProgressBar(count, node_id)

    def tell(text: str) -> None:
        logging.info("GLM-Image Remote: %s", presentable(text.replace("\n", "; "), LONGEST))
        show(text, node_id)

    def cancelled() -> bool:
        return ended.is_set() or comfy.model_management.processing_interrupted()

    try:
        made = await asyncio.to_thread(run, tell, bar.update_absolute, cancelled)
    except remote.CancelledError:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise comfy.model_management.InterruptProcessingException() from None
    finally:
        ended.set()
    tell(made.report)
    return made


def to_batch(images: list[Image.Image]) -> torch.Tensor:
    """(B, H, W, 3) in 0..1, all in the first image's size; the report names the sizes that came."""
    size = images[0].size
    return torch.cat([to_image(p if p.size == size else p.resize(size, Image.Resampling.LANCZOS)) for p in images])
