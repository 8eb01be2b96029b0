"""GLM-Image from prompt to picture: plan, denoise, decode. Read this first.

`GlmImage` holds a checkpoint's four components. Each is loaded when first used, where its placement says, and can be
released; each step is a method, so that a plan can be kept, edited and drawn again.
Letters: B images, H W pixels, h w planner tokens of 32 px.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image

from .denoising.denoise import Passes, check_options, denoise_steps
from .denoising.scheduler import schedule
from .devices.capabilities import check_finite
from .devices.device import assert_on, current, require_compiler
from .devices.layer_offload import offload_layers
from .devices.memory import empty_cache, explaining_out_of_memory, memory_of, retry_smaller
from .errors import InputError
from .geometry import check_size, latent_size, patch_count, preview_grid, token_grid
from .loading.checkpoint import load_module, resolve
from .loading.placement import DECODER, GLYPH, PLANNER, VAE, Placement, choose, decoder_work, title
from .models.config import (
    DitConfig,
    GenerationConfig,
    GlyphConfig,
    ProcessorConfig,
    SchedulerConfig,
    VaeConfig,
    VisionLanguageConfig,
)
from .models.glyph_encoder import GlyphEncoder
from .models.int8 import quantise
from .models.planner import Planner
from .models.transformer import Dit, ReferenceCache
from .models.vae import Vae, decode_nbytes
from .plan import Plan, Reference, upsample_tokens
from .planning.controls import GridControl
from .planning.decode_step import new_step
from .planning.generate import decode
from .planning.graphs import GraphRunner
from .planning.prefill import Prefix, prefill
from .planning.prompt import PromptEncoder, check_length, collate
from .planning.references import prepare_reference
from .planning.sampling import check_sampling
from .text import quoted_texts

MAX_COUNT = 64
PREFIXES = 2  # prompts that stay read, of some megabytes each, a hundred with large references
LATENT_CHANNELS = 16
COMPONENTS = {  # folder -> (module, its configuration)
    PLANNER: (Planner, VisionLanguageConfig),
    GLYPH: (GlyphEncoder, GlyphConfig),
    DECODER: (Dit, DitConfig),
    VAE: (Vae, VaeConfig),
}

Progress = Callable[..., None]
Glyphs = Sequence[str] | Sequence[Sequence[str]]


class GlmImage:
    """A checkpoint ready to draw; make one with `from_pretrained`.

    Every `progress` is called as `progress(done, total, stage=NAME, **more)` and may raise to interrupt: "load"
    (bytes, component=), "prompt" (tokens read), "plan" (tokens, grid=, tokens=), "denoise" (steps, latents=).
    """

    def __init__(self, checkpoint, placement: Placement, compile: bool = False):
        if compile:
            _check_compile(placement)
        self.checkpoint, self.placement, self.compile = checkpoint, placement, compile
        self.on_load: Progress | None = None
        self._modules: dict[str, torch.nn.Module] = {}
        self._step = self._graphs = None
        self._read: dict[tuple, tuple[list[Reference], Prefix]] = {}  # so that another seed needs no second reading
        home = checkpoint.component(PLANNER)
        self.configs = {
            name: config.from_json(checkpoint.component(name) / "config.json")
            for name, (_, config) in COMPONENTS.items()
        }
        self.sampling = GenerationConfig.from_json(home / "generation_config.json")
        self.scheduler = SchedulerConfig.from_json(checkpoint.component("scheduler") / "scheduler_config.json")
        self.processor = ProcessorConfig.from_folder(checkpoint.component("processor"))
        self.prompts = PromptEncoder(checkpoint.component("processor"), self.configs[PLANNER])

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        local_only: bool = False,
        placement: Placement | None = None,
        progress: Progress | None = None,
        compile: bool = False,
    ) -> "GlmImage":
        """A folder, a hub id or `modelscope:owner/name` -> the model; no weight is read yet.

        Device and dtype default to the best present. `placement` decides for each component instead. `compile` runs
        the decoder's blocks by torch.compile. Raises `CheckpointError` if a file is missing, truncated or of another
        model, `DeviceError` if nothing can be compiled here.
        """
        checkpoint = resolve(path_or_id, revision, local_only)
        checkpoint.check()
        model = cls(checkpoint, placement or choose(checkpoint.folder, device, dtype), compile)
        model.on_load = progress
        return model

    # ---- components ----

    @property
    def planner(self) -> Planner:
        return self._component(PLANNER)

    @property
    def glyph_encoder(self) -> GlyphEncoder:
        return self._component(GLYPH)

    @property
    def transformer(self) -> Dit:
        return self._component(DECODER)

    @property
    def vae(self) -> Vae:
        return self._component(VAE)

    @property
    def codebook_size(self) -> int:
        return self.configs[PLANNER].vq_config.num_embeddings

    def _component(self, name: str) -> torch.nn.Module:
        if name not in self._modules:
            device = self.placement.devices[name]
            with explaining_out_of_memory(f"the {title(name)}", device):
                self._modules[name] = self._load(name)
        return self._modules[name]

    def _load(self, name: str) -> torch.nn.Module:
        device, dtype = self.placement.devices[name], self.placement.dtypes[name]
        streamed, eight_bits = name in self.placement.streamed, self.placement.stored.get(name) == torch.int8
        module = load_module(
            COMPONENTS[name][0],
            self.configs[name],
            self.checkpoint.component(name),
            "cpu" if streamed or eight_bits else device,
            dtype,
            progress=self.on_load and (lambda done, total: self.on_load(done, total, stage="load", component=name)),
        )
        if eight_bits:  # rounded in host memory: a device may not hold the 16 bits
            quantise(module).to("cpu" if streamed else device)
        if streamed:
            return offload_layers(module, device, self.placement.streamed[name])
        if name == PLANNER:
            module.fuse()
        if name == DECODER and self.compile:
            module.compile_blocks()
        return module

    def release(self, *names: str) -> None:
        """Free components by their folder names, all without any; they load again when used."""
        for name in names or tuple(COMPONENTS):
            if name not in COMPONENTS:
                raise InputError(f"there is no component {name!r}; use {', '.join(COMPONENTS)}")
            if name == PLANNER:
                self._step = self._graphs = None
                self._read.clear()
            if self._modules.pop(name, None) is not None:
                empty_cache(self.placement.devices[name])

    @contextlib.contextmanager
    def _stage(self, stage: str, component: str) -> Iterator[torch.device]:
        """Make room for a stage of the placement and make its component's device the current one."""
        self.release_if_loaded(*self.placement.leaving(stage))
        device = self.placement.devices[component]
        with torch.no_grad(), current(device):
            yield device

    def release_if_loaded(self, *names: str) -> None:
        for name in names:
            if name in self._modules:
                self.release(name)

    # ---- prompt -> plan ----

    def plan(
        self,
        prompt: str | Sequence[str],
        height: int,
        width: int,
        images: Sequence[Image.Image] | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        count: int = 1,
        controls: dict[str, GridControl] | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """Lay out `count` images for each prompt, row k of the plan drawn with seed + k.

        `height` and `width` are pixels, multiples of 32. `images` are references, of any size up to 4:1, for every
        row. Temperature and top_p default to the checkpoint's; 0 is greedy. `controls` may bias or force tokens.
        """
        prompts = check_prompts(prompt)
        check_size(height, width)
        _check_count(count, len(prompts))
        sampling = self.sampling.override(temperature, top_p)
        check_sampling(sampling)
        grid = token_grid(height, width)
        prepared = [prepare_reference(image, self.processor) for image in images or ()]
        preview = None if prepared else preview_grid(*grid)
        encoded = [self.prompts.encode(text, grid, preview, [r.grid for r in prepared]) for text in prompts]
        check_length(encoded, [g for g in (preview, grid) if g], self.configs[PLANNER])
        rows = encoded if len(encoded) == 1 else [e for e in encoded for _ in range(count)]
        key = (tuple(prompts), len(rows), grid, *(_digest(image) for image in prepared))
        with self._stage("planning", PLANNER) as device:
            if key not in self._read:
                references = [self._reference(image, device) for image in prepared]
                tokens = [reference.prior_token_ids_d32 for reference in references]
                batch = collate(rows, grid, preview, self.configs[PLANNER], tokens)
                prefix = prefill(self.planner, batch, device, _staged(progress, "prompt"))
                assert_on(device, logits=prefix.logits)
                check_finite(prefix.logits, "planner")
                self._read[key] = references, prefix
            references, prefix = self._recall(key)
            drawn = self._draw(prefix, sampling, seed, count * len(prompts), controls, _staged(progress, "plan"))
        texts = [text for text in prompts for _ in range(count)]
        return Plan(drawn["full"], grid, self.codebook_size, texts, seed, drawn.get("preview"), preview, references)

    def _recall(self, key: tuple) -> tuple[list[Reference], Prefix]:
        """What the planner made of references and prompt; forgets all but the latest few."""
        self._read[key] = self._read.pop(key)
        while len(self._read) > PREFIXES:
            del self._read[next(iter(self._read))]
        return self._read[key]

    def _draw(self, prefix, sampling, seed: int, rows: int, controls, progress) -> dict[str, torch.Tensor]:
        """Tokens of every grid; buffers and captured graphs of the last plan serve the next one of its size."""
        biased = any(control.logit_bias is not None for control in (controls or {}).values())
        if self._step is None or not self._step.fits(prefix, sampling, rows, biased):
            self._graphs = GraphRunner(self.planner, prefix.logits.device)
            self._step = new_step(self.planner, prefix, sampling, rows, biased)
        seeds = [seed + k for k in range(rows)]
        return decode(
            self.planner,
            prefix,
            sampling,
            seeds,
            controls=controls,
            progress=progress,
            step=self._step,
            run=self._graphs,
        )

    def _reference(self, prepared, device: torch.device) -> Reference:
        ids = self.planner.tokenize_image(prepared.vit_pixels.to(device, self.placement.dtypes[PLANNER]))
        return Reference(prepared.pixels, ids.cpu(), prepared.grid)

    # ---- plan -> latents ----

    def denoise(
        self, plan: Plan, steps: int = 50, guidance_scale: float = 1.5, seed: int = 0, **options
    ) -> torch.Tensor:
        """Draw a plan: float32 latents (B, 16, H/8, W/8), normalised, on the decoder's device.

        `options` are those of `denoise_steps`, and `progress`.
        """
        progress = options.pop("progress", None)
        for done, latents in enumerate(self.denoise_steps(plan, steps, guidance_scale, seed, **options), start=1):
            if progress:
                progress(done, steps, stage="denoise", latents=latents)
        return latents

    def denoise_steps(
        self,
        plan: Plan,
        steps: int = 50,
        guidance_scale: float = 1.5,
        seed: int = 0,
        *,
        noise: torch.Tensor | None = None,
        glyph_texts: Glyphs | None = None,
        negative_glyph_texts: Sequence[str] | None = None,
        glyph_mode: str = "reference",
        glyph_visible: torch.Tensor | None = None,
        glyph_visible_until: float = 1.0,
        hold: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        step_cache: float | None = None,
        guidance_batching: str = "auto",
    ) -> Iterator[torch.Tensor]:
        """The latents after each step.

        `noise` (B, 16, H/8, W/8) overrides the seed, with which row k is drawn from seed + k on the CPU. Texts to
        draw are `glyph_texts` (one list for all rows, or one a row), else the prompt's quoted strings:
        `glyph_mode` "reference" finds them exactly as diffusers does, its faults included, and is the default because
        the decoder was trained with it and results can be compared; "prompt_order" reads apostrophes and all quote
        styles. Guidance steers away from `negative_glyph_texts` (none); a scale of 1 leaves it out. `glyph_visible`
        (B or 1, patches, L) and `hold` are a layout's, see `guidance`; `glyph_visible_until` is the share of the
        steps for which the former counts. `guidance_interval` and `step_cache` draw another picture in less time,
        see `denoise.Shortcuts`. `guidance_batching` says how the two passes of guidance run: "batched" as one batch,
        "sequential" one after the other, "auto" what suits device and memory; the picture is the same up to rounding.
        """
        self._check_plan(plan, guidance_scale)
        shortcuts = check_options(guidance_interval, step_cache, guidance_batching)
        noise = draw_noise(plan, seed) if noise is None else _check_noise(noise, plan)
        texts = _texts_of(plan, glyph_texts, glyph_mode)
        times = schedule(self.scheduler, steps, patch_count(plan.height, plan.width))
        with self._stage("drawing", DECODER) as device:
            passes = self._passes(plan, texts, list(negative_glyph_texts or ()), guidance_scale, glyph_visible)
            batched = self._batched(guidance_batching, passes, plan) and step_cache is None
            passes = replace(passes, guided_steps=round(glyph_visible_until * steps), batched=batched)
            noise, drawn = noise.to(device, torch.float32), passes.conditional
            assert_on(device, noise=noise, glyphs=drawn.glyphs, prior=drawn.prior, tables=drawn.cos)
        return denoise_steps(self.transformer, times, noise, passes, hold, shortcuts)

    def _check_plan(self, plan: Plan, guidance_scale: float) -> None:
        codebook = self.configs[DECODER].prior_vq_quantizer_codebook_size
        if plan.codebook_size != codebook:
            raise InputError(
                f"the plan uses a codebook of {plan.codebook_size} tokens, this decoder one of {codebook}; "
                "plan with the same checkpoint"
            )
        if not 1 <= guidance_scale < float("inf"):
            raise InputError(f"guidance_scale {guidance_scale} is not accepted; use 1 (off) or more, such as 1.5")

    def _passes(self, plan, texts, negative_texts, guidance_scale: float, glyph_visible) -> Passes:
        device, dit = self.placement.devices[DECODER], self.transformer
        ids, grid = plan.prior_token_ids.to(device), (2 * plan.grid[0], 2 * plan.grid[1])
        embeds, mask = self._glyphs(texts)
        about = {"glyph_mask": mask, "references": self._written(plan)}
        conditional, guided, unconditional = dit.prepare(embeds, ids, grid, **about), None, None
        if glyph_visible is not None:
            guided = dit.prepare(embeds, ids, grid, glyph_visible=glyph_visible.to(device), **about)
        if guidance_scale != 1:
            embeds, _ = self._glyphs([negative_texts] * len(plan))
            unconditional = dit.prepare(embeds, ids, grid, prior_token_drop=True)
        return Passes(conditional, unconditional, guidance_scale, guided)

    def _batched(self, choice: str, passes: Passes, plan: Plan) -> bool:
        """Whether both passes of guidance run as one batch."""
        if choice != "auto":
            return choice == "batched"
        dtype = self.placement.dtypes[DECODER]
        work = decoder_work(self.configs[DECODER], dtype, plan.height, plan.width, len(plan))
        return passes.batches_well(self.placement.devices[DECODER], work, DECODER in self.placement.streamed)

    def _glyphs(self, texts: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (B, L, C) and mask of each row's texts, on the decoder's device and in its dtype."""
        if all(row == texts[0] for row in texts):
            embeds, mask = self.glyph_encoder.embed_batch(texts[:1])
            embeds = embeds.expand(len(texts), -1, -1)
        else:
            embeds, mask = self.glyph_encoder.embed_batch(texts)
        device = self.placement.devices[DECODER]
        return embeds.to(device, self.placement.dtypes[DECODER]), None if mask is None else mask.to(device)

    def _written(self, plan: Plan) -> ReferenceCache | None:
        """Keys and values of the plan's references in every layer of the decoder."""
        if not plan.references:
            return None
        device, dtype = self.placement.devices[DECODER], self.placement.dtypes[DECODER]
        caches = []
        for reference in plan.references:
            latents = self.encode(reference.pixels[None].float() / 255).to(device, dtype)
            ids = upsample_tokens(reference.prior_token_ids_d32, reference.grid)[None]
            caches.append(self.transformer.write_reference(latents, ids.to(device)))
        return ReferenceCache.join(caches)

    # ---- pixels <-> latents ----

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) in 0..1 -> normalised latents (B, 16, H/8, W/8) on the VAE's device."""
        with self._stage("drawing", VAE) as device:
            pixels = image.movedim(-1, 1).to(device, self.placement.dtypes[VAE]) * 2 - 1
            return self.vae.normalise(self.vae.encode(pixels))

    def decode(self, latents: torch.Tensor, tiled: bool | None = None) -> torch.Tensor:
        """Normalised latents (B, 16, H/8, W/8) -> images (B, H, W, 3), float32 in 0..1, on the CPU.

        `tiled` None decodes the whole image where memory allows, else in strips, which give the same picture.
        """
        with self._stage("drawing", VAE) as device:
            latents = self.vae.denormalise(latents.to(device, self.placement.dtypes[VAE]))
            assert_on(device, latents=latents)
            pixels = check_finite(self._decode(latents, device, tiled), "VAE")
            return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    def _decode(self, latents: torch.Tensor, device: torch.device, tiled: bool | None) -> torch.Tensor:
        if tiled is None:
            height, width = (8 * side for side in latents.shape[-2:])
            needed = decode_nbytes(self.configs[VAE], height, width, latents.dtype)
            if needed < memory_of(device).free:
                return retry_smaller(device, lambda: self.vae.decode(latents), lambda: self.vae.decode_tiled(latents))
        return self.vae.decode(latents) if tiled is False else self.vae.decode_tiled(latents)

    # ---- all of it ----

    def generate(
        self,
        prompt: str | Sequence[str],
        height: int = 1024,
        width: int = 1024,
        images: Sequence[Image.Image] | None = None,
        *,
        steps: int = 50,
        guidance_scale: float = 1.5,
        seed: int = 0,
        plan_seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        count: int = 1,
        progress: Progress | None = None,
        **options,
    ) -> list[Image.Image]:
        """Prompt to PIL images, `count` for each prompt; `plan_seed` is `seed` unless given.

        `options` are those of `denoise_steps`. Steps and guidance are checked before anything is planned.
        """
        schedule(self.scheduler, steps, 1)
        check_options(**options)
        plan = self.plan(
            prompt,
            height,
            width,
            images,
            seed if plan_seed is None else plan_seed,
            temperature,
            top_p,
            count=count,
            progress=progress,
        )
        latents = self.denoise(plan, steps, guidance_scale, seed, progress=progress, **options)
        return to_pil(self.decode(latents))


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several -> a list; an empty one is refused."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("no prompt was given; describe the image, with the texts to draw in quotes")
    for text in prompts:
        if isinstance(text, str) and not text.strip():
            raise InputError("the prompt is empty; describe the image, with the texts to draw in quotes")
    return prompts


def _check_count(count: int, prompts: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count * prompts <= MAX_COUNT:
        raise InputError(f"{count} images for each of {prompts} prompts; use 1 to {MAX_COUNT} images in all")


def _texts_of(plan: Plan, given: Glyphs | None, mode: str) -> list[list[str]]:
    """The texts to draw in each row: those given (one list for all rows, or one a row), else the prompts' own."""
    if given is None:
        return [quoted_texts(prompt, mode) for prompt in plan.prompts]
    if isinstance(given, str):
        raise InputError(f"glyph_texts must be a list of strings, got the string {given[:40]!r}")
    if all(isinstance(text, str) for text in given):
        return [list(given)] * len(plan)
    if len(given) != len(plan) or any(isinstance(row, str) for row in given):
        raise InputError(f"glyph_texts must be one list of strings, or {len(plan)} lists, one for each image")
    return [list(row) for row in given]


def draw_noise(plan: Plan, seed: int) -> torch.Tensor:
    """(B, 16, H/8, W/8) from a generator of its own for every row, on the CPU: the same on every device."""
    shape = (LATENT_CHANNELS, *latent_size(plan.height, plan.width))
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + k)) for k in range(len(plan))]
    return torch.stack(rows)


def _check_compile(placement: Placement) -> None:
    if DECODER in placement.streamed:
        raise InputError("compile needs a decoder that stays on its device; layers that stream cannot be compiled")
    require_compiler(placement.devices[DECODER])


def _check_noise(noise: torch.Tensor, plan: Plan) -> torch.Tensor:
    wanted = (len(plan), LATENT_CHANNELS, *latent_size(plan.height, plan.width))
    if tuple(noise.shape) != wanted:
        raise InputError(f"noise is {tuple(noise.shape)}, this plan takes {wanted}")
    return noise


def _digest(image) -> tuple[tuple[int, int], bytes]:
    """Tells prepared references apart."""
    return image.grid, hashlib.sha256(image.pixels.numpy().tobytes()).digest()


def _staged(progress: Progress | None, stage: str) -> Progress | None:
    return progress and (lambda done, total, **more: progress(done, total, stage=stage, **more))


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """(B, H, W, 3) in 0..1 -> RGB pictures."""
    return [Image.fromarray(image.mul(255).round().to(torch.uint8).numpy()) for image in images.cpu()]
