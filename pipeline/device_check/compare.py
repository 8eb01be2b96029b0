"""The reference pair and this implementation on one checkpoint, step by step: anyone with weights can prove parity.

Both get the same prompt, the same noise and, from the plan on, the same tokens, so that each step is compared alone.
The plan is greedy: sampled ones differ by their random numbers. In half precision both round, and small differences
grow from step to step. So the reference is also compared with itself, on noise that was moved by one rounding: what
that does to its latents measures what ours may differ by.
Shapes: N planned tokens, V codebook size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from ..denoising.conditioning import glyph_rows, noise_shape, sample_noise
from ..denoising.options import DenoiseOptions
from ..devices.npu_pairs import version_of
from ..devices.remembered import name_of
from ..errors import InputError
from ..geometry import preview_grid, token_grid
from ..glm_image import GlmImage
from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from ..plan import Plan, upsample_tokens
from ..planning.make_plan import PlanRequest
from ..planning.prefill import prompt_mask
from ..planning.preview import codebook_colours
from ..planning.prompt import PromptBatch, collate
from ..planning.sampling import warp
from .reference_pair import ReferencePair, require
from .results import DeviceReport, Figure, StageReport, collect

OWN_ERROR = 4  # times the reference's own error that ours may differ by
EXACT = {"logits": 1e-3, "glyphs": 1e-4, "latents": 1e-3, "image": 60.0}  # accepted in float32; dB for the image
ROUNDED = {"logits": 0.1, "glyphs": 0.03, "latents": 0.05, "image": 30.0}  # in half precision


@dataclass(frozen=True)
class CompareRequest:
    """What both make: one image of a prompt, without references, which the reference pair cannot read."""

    prompt: str
    height: int = 1024
    width: int = 1024
    steps: int = 50
    guidance_scale: float = 1.5
    seed: int = 0

    def __post_init__(self):
        require()
        self.plan_request()
        DenoiseOptions(self.steps, self.guidance_scale, self.seed)

    def plan_request(self) -> PlanRequest:
        return PlanRequest(self.prompt, self.height, self.width, temperature=0.0)


@dataclass
class Pair:
    """The same thing by the reference and by ours; the reference's is None where it failed."""

    reference: torch.Tensor | None
    ours: torch.Tensor


@dataclass
class Comparison:
    """What stages share: both sides, and what each made. `made` has "plan", "latents" and "image"."""

    request: CompareRequest
    model: GlmImage
    pair: ReferencePair
    made: dict[str, Pair] = field(default_factory=dict)
    colours: torch.Tensor | None = None  # (V, 3) of tokens

    def __post_init__(self):
        rounded = [*self.model.placement.stored, *self.model.placement.forms]
        if rounded:
            raise InputError(
                f"the reference has no rounded weights to compare {rounded[0]} with; use full weights on both sides"
            )

    def limit(self, kind: str, *components: str) -> float:
        exact = all(self.model.placement.dtypes[name] == torch.float32 for name in components)
        return (EXACT if exact else ROUNDED)[kind]

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(preview, full) in tokens."""
        full = token_grid(self.request.height, self.request.width)
        return preview_grid(*full), full

    @property
    def tokens(self) -> torch.Tensor:
        """(1, h*w) the full grid that both denoise: the reference's, or ours where it has none."""
        made = self.made["plan"]
        full = self.grids[1]
        return (made.ours if made.reference is None else made.reference)[None, -full[0] * full[1] :]

    def plan_of(self, tokens: torch.Tensor) -> Plan:
        return Plan(tokens, self.grids[1], self.model.codebook_size, [self.request.prompt], 0)

    def about(self) -> dict[str, str]:
        request, model = self.request, self.model
        names = ("torch", "torch_npu", "transformers", "diffusers", "comfyui-glm-image")
        devices = {str(device): name_of(device) for device in model.placement.devices.values()}
        dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in model.placement.dtypes.items()}
        return {
            "model": f"{model.checkpoint.name} {model.checkpoint.revision or ''}".strip(),
            "device": ", ".join(f"{device} {name}".strip() for device, name in devices.items()),
            "dtype": ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items()),
            "prompt": request.prompt,
            "size": f"{request.width}x{request.height} px, {request.steps} steps, guidance {request.guidance_scale}, "
            f"noise seed {request.seed}",
            **{name: version for name in names if (version := version_of(name))},
        }


def compare(comparison: Comparison, on_stage: Callable[[StageReport], None] | None = None) -> DeviceReport:
    """Every stage in order; one that fails is reported, and those that can go on without it do."""
    reports = []
    for name, stage in STAGES.items():
        reports.append(collect(name, stage(comparison)))
        comparison.model.release()
        if on_stage:
            on_stage(reports[-1])
    return DeviceReport(comparison.about(), reports, "GLM-Image beside the reference")


def plan(comparison: Comparison) -> Iterator[Figure]:
    """Both plan on their own; then our logits along the reference's plan, whose every token has the same past."""
    request, model = comparison.request, comparison.model
    ours = model.make_plan(request.plan_request())
    own = torch.cat((ours.preview_token_ids[0], ours.prior_token_ids_d32[0]))
    made = comparison.made["plan"] = Pair(None, own)
    comparison.colours = codebook_colours(model.planner.model.vqmodel.quantize.embedding.weight)
    model.release()
    theirs, logits = comparison.pair.plan(request.prompt, request.height, request.width, len(own), model.codebook_size)
    if len(theirs) != len(own) or int(theirs.max()) >= model.codebook_size:
        raise InputError(
            f"the reference's plan is not whole: {len(theirs)} of {len(own)} tokens; ours is used for both"
        )
    made.reference = theirs
    exact = model.placement.dtypes[PLANNER] == torch.float32
    equal = own == theirs
    first = "" if equal.all() else f"first difference at token {int(equal.int().argmin())}"
    yield Figure(
        "tokens equal, each planned alone",
        int(equal.sum()),
        f"of {len(own)}",
        note=first,
        good=bool(equal.all()) or not exact,
    )
    yield from _logits(comparison, theirs, logits)


def _logits(comparison: Comparison, tokens: torch.Tensor, theirs: torch.Tensor) -> Iterator[Figure]:
    """Figures of (N, V) logits along (N,) tokens."""
    model, limit = comparison.model, comparison.limit("logits", PLANNER)
    ours = logits_along(comparison, tokens)
    same = ours.argmax(dim=-1) == tokens
    gaps = theirs.topk(2, dim=-1).values.diff(dim=-1).abs()[:, 0]
    widest = "" if same.all() else f"others lay within {float(gaps[~same].max()):.2g} of the next best logit"
    yield Figure("same choice after the same tokens", int(same.sum()), f"of {len(tokens)}", note=widest)
    error = relative(ours, theirs)
    yield Figure("logits", error, "relative error", target=f"{limit:g}", good=error <= limit)
    sampling = model.settings.sampling
    away = (warp(ours, sampling).softmax(-1) - warp(theirs, sampling).softmax(-1)).abs().sum(-1).mean() / 2
    note = f"mean distance at temperature {sampling.temperature}, top_p {sampling.top_p}"
    yield Figure("probabilities that sampling sees", float(away), "", note=note)


@torch.no_grad()
def logits_along(comparison: Comparison, tokens: torch.Tensor) -> torch.Tensor:
    """(N,) tokens in planning order -> (N, V) our logits before each of them, on the CPU."""
    model = comparison.model
    batch = _prompt(comparison)
    with model.components.on_device(PLANNER) as device:
        ids = torch.cat((batch.ids, tokens[None, :-1]), dim=1)
        positions = torch.cat((batch.positions, batch.decode_positions[:, :, : len(tokens) - 1]), dim=2)
        length = ids.shape[1]
        cache, mask = model.planner.new_cache(1, length, device), torch.ones(1, length, dtype=torch.bool)
        tables, mask = model.planner.rope_tables(positions.to(device)), prompt_mask(mask, 0, length).to(device)
        rows = model.planner(model.planner.embed(ids, device), tables, mask, cache, 0, length, every_row=True)
        return rows[0, batch.ids.shape[1] - 1 :, : model.codebook_size].float().cpu()


def _prompt(comparison: Comparison) -> PromptBatch:
    prepared = comparison.model.settings.prepare(comparison.request.plan_request())
    grids = prepared.grids
    return collate(prepared.encoded, grids["full"], grids["preview"], prepared.config)


def glyphs(comparison: Comparison) -> Iterator[Figure]:
    """Embeddings of the quoted texts."""
    prompt, model, limit = comparison.request.prompt, comparison.model, comparison.limit("glyphs", GLYPH)
    with torch.no_grad(), model.components.on_device(GLYPH):
        ours = model.glyph_encoder.embed_batch(glyph_rows([prompt], None, "reference"))[0].float().cpu()
    model.release()
    error = relative(ours, comparison.pair.glyphs(prompt))
    yield Figure("embeddings", error, "relative error", target=f"{limit:g}", good=error <= limit)


def latents(comparison: Comparison) -> Iterator[Figure]:
    """The same tokens and noise denoised by both, and by the reference from noise moved by one rounding."""
    request, model = comparison.request, comparison.model
    noise = sample_noise(noise_shape(1, request.height, request.width), request.seed)
    steps = model.denoise_steps(
        comparison.plan_of(comparison.tokens), request.steps, request.guidance_scale, noise=noise
    )
    ours = [step.cpu() for step in steps]
    made = comparison.made["latents"] = Pair(None, ours[-1])
    del steps
    model.release()
    ids = upsample_tokens(comparison.tokens, comparison.grids[1])
    size = {"height": request.height, "width": request.width}
    settings = {**size, "num_inference_steps": request.steps, "guidance_scale": request.guidance_scale}
    theirs = comparison.pair.denoise(request.prompt, ids, noise, **settings)
    made.reference = theirs[-1]
    moved = noise * (1 + torch.finfo(model.placement.dtypes[DECODER]).eps)
    scatter = relative(comparison.pair.denoise(request.prompt, ids, moved, **settings)[-1], theirs[-1])
    accepted = comparison.limit("latents", DECODER, GLYPH)
    yield Figure("after one step", relative(ours[0], theirs[0]), "relative error")
    error, limit = relative(ours[-1], theirs[-1]), max(accepted, OWN_ERROR * scatter)
    yield Figure("after all steps", error, "relative error", target=f"{limit:.2g}", good=error <= limit)
    yield Figure("the reference, noise moved by one rounding", scatter, "relative error")


def image(comparison: Comparison) -> Iterator[Figure]:
    """The VAE on the same latents; then both images from their own."""
    model, made = comparison.model, comparison.made["latents"]
    ours = model.decode(made.ours)
    same = ours if made.reference is None else model.decode(made.reference)
    result = comparison.made["image"] = Pair(None, ours)
    model.release()
    theirs = result.reference = comparison.pair.decode(made.ours if made.reference is None else made.reference)
    limit, quality = comparison.limit("image", VAE), psnr(same, theirs)
    yield Figure("VAE on the same latents", quality, "dB PSNR", target=f"{limit:g}", good=quality >= limit)
    levels = (ours - theirs).abs().amax(dim=-1) * 255
    note = f"{float((levels > 1.5).float().mean()):.1%} of the pixels by more than one level of 255"
    yield Figure("whole image", psnr(ours, theirs), "dB PSNR", note=note)
    yield Figure("largest difference of a pixel", round(float(levels.max())), "levels of 255")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Length of the difference over the reference's length."""
    if ours.shape != theirs.shape:
        raise InputError(f"ours has the shape {tuple(ours.shape)}, the reference's {tuple(theirs.shape)}")
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of images in 0..1; 120 dB at most, where they are equal."""
    error = float((ours.double() - theirs.double()).square().mean())
    return min(-10 * math.log10(error), 120.0) if error else 120.0


STAGES: dict[str, Callable[[Comparison], Iterator[Figure]]] = {
    "plan": plan,
    "glyphs": glyphs,
    "latents": latents,
    "image": image,
}
