"""Prompt to plan: every check, then the prompt pass, then the token loop. `GlmImage` and the nodes both plan by it.

A `PlanRequest` checks what needs no checkpoint, `PlannerSettings.prepare` what needs its small files, and `make_plan`
does the work; no weight is read before both have passed.
Shapes: B images, h w full grid (a token is 32 px).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..devices.capabilities import check_finite
from ..devices.device import assert_on
from ..errors import InputError
from ..geometry import check_size, preview_grid, token_grid
from ..models.config import GenerationConfig, ProcessorConfig, VisionLanguageConfig
from ..models.planner import Planner
from ..plan import Plan, Reference, UsedLora
from ..progress import Progress
from ..text import check_prompt, shown
from .controls import GridControl
from .decode_step import Step
from .generate import decode
from .graphs import GraphRunner
from .prefill import Prefix, prefill
from .prompt import EncodedPrompt, Grid, PromptEncoder, collate
from .references import PreparedReference, prepare_reference
from .rows import check_rows
from .sampling import check_sampling, check_temperature, check_top_p
from .steps import fits, new_step, plan_rows

MAX_COUNT = 64  # images of one plan
SEEDS = (-(2**63), 2**64 - 1)  # what a torch.Generator takes
PREFIXES = 2  # prompts that stay read, of some megabytes each, a hundred with large references

Controls = dict[str, GridControl]


def check_seed(name: str, seed: int, rows: int = 1) -> None:
    """Refuse a seed that no generator takes; row k of a batch uses seed + k."""
    lowest, highest = SEEDS
    if isinstance(seed, bool) or not isinstance(seed, int) or not lowest <= seed <= highest - rows + 1:
        raise InputError(f"{name} {shown(seed)} is not accepted; use a whole number from 0 to 2^64 - {rows}")


@dataclass(frozen=True)
class PlanRequest:
    """What to plan; raises `InputError` when made for values that no plan has.

    `height` and `width`: pixels, multiples of 32. `images`: references for every row, of any size up to 4:1. `count`
    images are planned for each prompt, row k sampled with seed + k. Temperature (0 is greedy) and top_p default to
    the checkpoint's. `plan_rows` tokens of each image go through the planner in one pass, None what suits the device.
    """

    prompts: tuple[str, ...]
    height: int
    width: int
    images: tuple[Image.Image, ...] = ()
    seed: int = 0
    count: int = 1
    temperature: float | None = None
    top_p: float | None = None
    plan_rows: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "prompts", check_prompts(self.prompts))
        object.__setattr__(self, "images", check_images(self.images))
        check_size(self.height, self.width)
        check_count(self.count, len(self.prompts))
        check_seed("plan seed", self.seed, self.rows)
        _check_number("temperature", self.temperature, check_temperature)
        _check_number("top_p", self.top_p, check_top_p)
        check_rows(self.plan_rows)

    @property
    def rows(self) -> int:
        """Images in all."""
        return self.count * len(self.prompts)

    @property
    def seeds(self) -> list[int]:
        return [self.seed + k for k in range(self.rows)]

    @property
    def row_prompts(self) -> list[str]:
        return [prompt for prompt in self.prompts for _ in range(self.count)]


@dataclass(frozen=True)
class PlannerSettings:
    """The small files of a checkpoint that planning needs besides the planner's weights."""

    config: VisionLanguageConfig
    sampling: GenerationConfig
    processor: ProcessorConfig
    prompts: PromptEncoder

    @classmethod
    def from_folder(cls, folder: Path) -> "PlannerSettings":
        """Those of a checkpoint's folder."""
        planner, processor = folder / "vision_language_encoder", folder / "processor"
        config = VisionLanguageConfig.from_json(planner / "config.json")
        return cls(
            config,
            GenerationConfig.from_json(planner / "generation_config.json"),
            ProcessorConfig.from_folder(processor),
            PromptEncoder(processor, config),
        )

    def prepare(self, request: PlanRequest) -> "PreparedPlan":
        """Encode prompts and references, and check them against the planner's limits; reads no weight."""
        sampling = self.sampling.override(request.temperature, request.top_p)
        check_sampling(sampling)
        grid = token_grid(request.height, request.width)
        preview = None if request.images else preview_grid(*grid)
        references = [prepare_reference(image, self.processor) for image in request.images]
        shapes = [reference.grid for reference in references]
        encoded = [self.prompts.encode(prompt, grid, preview, shapes) for prompt in request.prompts]
        grids = {"preview": preview, "full": grid} if preview else {"full": grid}
        length = max(len(prompt.ids) for prompt in encoded)
        return PreparedPlan(request, self.config, sampling, grids, encoded, references, length)


@dataclass(frozen=True)
class PreparedPlan:
    """A request that nothing but the planner's own work can fail.

    `grids`: name -> (h, w) in planning order. `prompt_length`: tokens of the longest prompt.
    """

    request: PlanRequest
    config: VisionLanguageConfig
    sampling: GenerationConfig
    grids: dict[str, Grid]
    encoded: list[EncodedPrompt]
    references: list[PreparedReference]
    prompt_length: int

    @property
    def planned(self) -> int:
        """Tokens to plan for each image."""
        return sum(h * w for h, w in self.grids.values())

    @property
    def key(self) -> tuple:
        """Tells apart what the prompt pass depends on."""
        request, digests = self.request, map(_digest, self.references)
        rows = 1 if len(request.prompts) == 1 else request.rows
        return (request.prompts, rows, tuple(self.grids.items()), *digests)


@dataclass
class PlanMemory:
    """What one planner keeps from plan to plan: prompts that it has read, and the last plan's buffers and graphs."""

    prefixes: dict[tuple, tuple[list[Reference], Prefix]] = field(default_factory=dict)
    step: Step | None = None
    graphs: GraphRunner | None = None

    def recall(self, key: tuple, read: Callable[[], tuple[list[Reference], Prefix]]) -> tuple[list[Reference], Prefix]:
        """`read()`, unless that was done lately; forgets all but the latest few."""
        self.prefixes[key] = self.prefixes.pop(key) if key in self.prefixes else read()
        while len(self.prefixes) > PREFIXES:
            del self.prefixes[next(iter(self.prefixes))]
        return self.prefixes[key]

    def step_for(self, planner: Planner, prefix: Prefix, sampling: GenerationConfig, batch: int, rows: int | None):
        """Buffers and graphs of the last plan where they fit, else new ones."""
        if self.step is None or not fits(self.step, prefix, sampling, batch, rows):
            self.graphs = GraphRunner(planner, prefix.logits.device)
            self.step = new_step(planner, prefix, sampling, batch, rows)
        return self.step, self.graphs


@torch.no_grad()
def make_plan(
    planner: Planner,
    prepared: PreparedPlan,
    device: torch.device,
    dtype: torch.dtype,
    *,
    controls: Controls | None = None,
    memory: PlanMemory | None = None,
    progress: Progress | None = None,
    before_pass: Callable[[], None] | None = None,
    loras: tuple[UsedLora, ...] = (),
) -> Plan:
    """Plan what `prepared` asks for by a planner that computes on `device` in `dtype`.

    `controls` may bias or force tokens of each grid. `memory` spares work when only the seed changes.
    `progress(done, total, stage="prompt" or "plan", **more)` and `before_pass()` may raise to interrupt. `loras` are
    those that the planner has already, for the plan to note. Raises
    `InputError` for controls that do not fit, `DeviceError` for logits that are not finite.
    """
    memory, request = memory or PlanMemory(), prepared.request
    references, prefix = memory.recall(
        prepared.key, lambda: _read_prompt(planner, prepared, device, dtype, _staged(progress, "prompt"))
    )
    step, graphs = memory.step_for(planner, prefix, prepared.sampling, request.rows, request.plan_rows)

    def run(step: Step, k: int) -> None:
        if before_pass:
            before_pass()
        graphs(step, k)

    tokens = decode(
        planner,
        prefix,
        prepared.sampling,
        request.seeds,
        controls=controls,
        progress=_staged(progress, "plan"),
        rows=request.plan_rows,
        step=step,
        run=run,
    )
    return _as_plan(prepared, tokens, references, plan_rows(step), loras)


def _read_prompt(planner, prepared: PreparedPlan, device, dtype, progress) -> tuple[list[Reference], Prefix]:
    references = [_tokenize(planner, reference, device, dtype) for reference in prepared.references]
    encoded, request = prepared.encoded, prepared.request
    rows = encoded if len(encoded) == 1 else [prompt for prompt in encoded for _ in range(request.count)]
    tokens = [reference.prior_token_ids_d32 for reference in references]
    batch = collate(rows, prepared.grids["full"], prepared.grids.get("preview"), prepared.config, tokens)
    prefix = prefill(planner, batch, device, progress)
    assert_on(device, logits=prefix.logits)
    check_finite(prefix.logits, "planner")
    return references, prefix


def _tokenize(planner: Planner, reference: PreparedReference, device, dtype: torch.dtype) -> Reference:
    ids = planner.tokenize_image(reference.vit_pixels.to(device, dtype))
    return Reference(reference.pixels, ids.cpu(), reference.grid)


def _as_plan(prepared: PreparedPlan, tokens: dict, references: list[Reference], rows: int, loras: tuple) -> Plan:
    return Plan(
        tokens["full"],
        prepared.grids["full"],
        prepared.config.vq_config.num_embeddings,
        prepared.request.row_prompts,
        prepared.request.seed,
        tokens.get("preview"),
        prepared.grids.get("preview"),
        references,
        rows,
        loras,
    )


def check_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several -> a tuple of them; other types, none and empty ones are refused."""
    given = (prompt,) if isinstance(prompt, str) else prompt
    if not isinstance(given, (list, tuple)):
        raise InputError(f"a prompt must be a string or a list of strings, got {type(prompt).__name__}")
    if not given:
        raise InputError("no prompt was given; describe the image, with the texts to draw in quotes")
    for text in given[: MAX_COUNT + 1]:
        check_prompt(text)
    return tuple(given)


def check_images(images: Sequence[Image.Image] | None) -> tuple[Image.Image, ...]:
    """Reference images as a tuple; anything that is not a PIL image is refused."""
    given = () if images is None else images
    if not isinstance(given, (list, tuple)):
        raise InputError(f"references must be a list of PIL images, got {type(images).__name__}")
    for image in given:
        if not isinstance(image, Image.Image):
            raise InputError(f"a reference must be a PIL image, got {type(image).__name__}; open it with Image.open")
    return tuple(given)


def check_count(count: int, prompts: int = 1) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count * prompts <= MAX_COUNT:
        raise InputError(f"{count} images for each of {prompts} prompts; use 1 to {MAX_COUNT} images in all")


def _check_number(name: str, value: float | None, check_range: Callable[[float], None]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} {shown(value)} is not accepted; use a number, or leave it out for the checkpoint's")
    check_range(value)


def _digest(reference: PreparedReference) -> tuple[Grid, bytes]:
    """Tells prepared references apart."""
    return reference.grid, hashlib.sha256(reference.pixels.numpy().tobytes()).digest()


def _staged(progress: Progress | None, stage: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, **more: progress(done, total, stage=stage, **more)
