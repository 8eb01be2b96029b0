"""Small random models of the release's architecture, and the parts of a run that the audit watches."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..devices import kernels
from ..devices.quantised_products import BITS, check_form
from ..errors import InputError
from ..models.config import GenerationConfig
from ..models.glyph_encoder import GlyphEncoder
from ..models.planner import Planner
from ..models.tiny import dit_config, glyph_config, planner_config, vae_config
from ..models.transformer import Dit
from ..models.vae import Vae
from ..models.weight_forms import pack, round_layers
from ..planning.controls import Steering
from ..planning.decode_step import DecodeStep
from ..planning.prefill import Prefix, prefill
from ..planning.prompt import PromptBatch
from ..planning.window_step import WindowStep

PROMPT, PLANNED, ROWS = 12, 8, 4
GRID = (4, 4)  # decoder patches

Part = tuple[str, bool, Callable[[], object]]


def parts(device: torch.device, dtype: torch.dtype) -> Iterator[Part]:
    """(name, whether it runs once a token or step, the run itself) of all that drawing a picture does."""
    torch.manual_seed(0)
    yield from planner_parts(device, dtype)
    yield from decoder_parts(device, dtype)
    vae = Vae(vae_config()).to(device, torch.float32 if dtype == torch.float16 else dtype)
    own = next(vae.parameters()).dtype
    yield "VAE: encode", False, lambda: vae.encode(torch.zeros(1, 3, 64, 64, dtype=own, device=device))
    latents = torch.zeros(1, 16, 16, 16, dtype=own, device=device)
    yield "VAE: decode", False, lambda: vae.decode(latents)
    yield "VAE: decode in strips", False, lambda: vae.decode_tiled(latents, 32)


def planner_parts(device: torch.device, dtype: torch.dtype) -> Iterator[Part]:
    planner = Planner(planner_config()).to(device, dtype).requires_grad_(False)
    planner.fuse()
    batch, sampling = prompt_batch(), GenerationConfig(0.9, 0.75)
    prefix = prefill(planner, batch, device)
    yield "vision tokenizer", False, lambda: planner.tokenize_image(torch.zeros(3, 64, 64, dtype=dtype, device=device))
    yield "planner: prompt", False, lambda: prefill(planner, batch, device)
    step = new_step(planner, prefix, sampling)
    yield "planner: first token", False, lambda: step.first(prefix.logits)
    yield "planner: token", True, lambda: step.eager(1)
    yield "planner: token for a graph", True, lambda: step.captured(step.cache.capacity)
    window = new_window(planner, prefix, sampling)
    yield "planner: first window", False, lambda: window.first(prefix.logits)
    yield "planner: window for a graph", True, lambda: window.captured(window.cache.capacity)
    for form, bits in forms_for(device, dtype):
        small = new_step(rounded(copy.deepcopy(planner), form, device), prefix, sampling)
        yield f"planner: token by {bits} weights", True, partial(small.captured, small.cache.capacity)


def forms_for(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    """(form, its bits in words) of the small weights that an NPU of this kind multiplies by."""
    for form, bits in BITS.items():
        with contextlib.suppress(InputError):
            check_form(form, device, dtype)
            if form == "w8" or "int4_linear" in kernels.registered_kernels(device.type):
                yield form, bits


def rounded(module: torch.nn.Module, form: str, device: torch.device) -> torch.nn.Module:
    return pack(round_layers(module, form), device, "npu")  # as it lies there, on a CPU too


def new_step(planner: Planner, prefix: Prefix, sampling: GenerationConfig) -> DecodeStep:
    capacity = PROMPT + PLANNED
    step = DecodeStep(planner, sampling, batch=1, capacity=capacity, planned=PLANNED, device=prefix.logits.device)
    step.start(prefix)
    return step


def new_window(planner: Planner, prefix: Prefix, sampling: GenerationConfig) -> WindowStep:
    sizes = {"batch": 1, "capacity": PROMPT + PLANNED + ROWS, "planned": PLANNED, "device": prefix.logits.device}
    step = WindowStep(planner, sampling, rows=ROWS, **sizes)
    ids = torch.zeros(1, PLANNED, dtype=torch.long)
    step.start(prefix, Steering(forced=ids - 1, biased=ids, bias=ids.float()))  # whose operators a graph always has
    return step


def prompt_batch(rows: int = 1) -> PromptBatch:
    """Twelve text tokens, one of them padding, before a grid of two by four tokens."""
    mask = torch.ones(rows, PROMPT, dtype=torch.bool)
    mask[:, 0] = False
    ids = torch.arange(PROMPT).expand(rows, -1) + 100
    positions = torch.arange(PROMPT).expand(3, rows, -1)
    decode = torch.arange(PROMPT, PROMPT + PLANNED).expand(3, rows, -1)
    return PromptBatch(ids, mask, positions, decode, ((2, 4),))


def decoder_parts(device: torch.device, dtype: torch.dtype) -> Iterator[Part]:
    glyph = GlyphEncoder(glyph_config()).to(device, dtype)
    yield "glyph encoder", False, lambda: glyph.embed_batch([["GLM", "Image"], ["a"]])
    dit = Dit(dit_config()).to(device, dtype)
    h, w = GRID
    latents = torch.zeros(2, 16, 2 * h, 2 * w, dtype=dtype, device=device)
    ids = torch.zeros(2, h * w, dtype=torch.long, device=device)
    embeds, mask = glyph.embed_batch([["GLM", "Image"], ["a"]])
    size = torch.full((1, 2), 64.0, dtype=dtype, device=device)

    def prepare():
        references = dit.encode_reference(latents[:1], ids[:1])
        return dit.prepare(embeds, ids, GRID, glyph_mask=mask, references=references)

    def modulate():
        times = torch.arange(2, dtype=torch.float32, device=device)
        return dit.modulations(times, size, torch.zeros_like(size), dtype)

    yield "decoder: references and masks", False, prepare
    yield "decoder: modulations", False, modulate
    context, modulations = prepare(), modulate()
    yield "decoder: step", True, lambda: dit.step(latents, modulations[0], context)
    for form, bits in forms_for(device, dtype):
        small = rounded(copy.deepcopy(dit), form, device)
        yield f"decoder: step by {bits} weights", True, partial(small.step, latents, modulations[0], context)
