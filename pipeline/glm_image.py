"""GLM-Image from prompt to image: plan, denoise, decode. Read this first.

`GlmImage` holds a checkpoint's four components. Each is loaded when first used, where its placement says, and can be
released; each step is a method, so that a plan can be kept, edited and denoised again.
Shapes: B images, H W pixels, h w planner tokens of 32 px.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image

from .denoising.cfg import CfgPasses
from .denoising.conditioning import (
    check_noise,
    encode_references,
    glyph_rows,
    noise_shape,
    reference_patch_ids,
    sample_noise,
    shared_rows,
)
from .denoising.denoise import denoise_steps
from .denoising.options import DenoiseOptions
from .denoising.scheduler import schedule
from .devices.capabilities import check_finite
from .devices.device import assert_on
from .devices.memory import memory_of, retry_smaller
from .errors import InputError
from .geometry import LATENT, PATCH, TOKEN, patch_count
from .images import to_pil
from .layout.control import merge_controls
from .layout.layout_control import (
    LayoutControl,
    Layouts,
    attention_mask_for,
    control_rows,
    hold_for,
    plan_controls_for,
)
from .loading.checkpoint import DECODER, GLYPH, PLANNER, VAE, Checkpoint, resolve, weight_files
from .loading.components import Components
from .loading.lora_files import LoraFile
from .loading.memory_needs import CheckpointSizes
from .loading.placement import Placement, PlacementRequest, choose
from .loading.work_needs import ImageBatch, decoder_work
from .models.config import SchedulerConfig
from .models.glyph_encoder import GlyphEncoder
from .models.planner import Planner
from .models.transformer import Dit
from .models.transformer_context import ReferenceCache
from .models.vae import Vae, decode_nbytes
from .plan import Plan
from .planning.controls import GridControl
from .planning.image_plan import fitted, plan_of_images
from .planning.make_plan import PlanMemory, PlannerSettings, PlanRequest, make_plan
from .progress import Progress

Prompt = str | Sequence[str]


class GlmImage:
    """A checkpoint ready to generate; make one with `from_pretrained`.

    Every `progress` is called as `progress(done, total, stage=NAME, **more)` and may raise to interrupt: "load"
    (bytes, component=), "prompt" (tokens read), "plan" (tokens, grid=, tokens=), "denoise" (steps, latents=).
    """

    def __init__(self, checkpoint: Checkpoint, placement: Placement, compile: bool = False):
        self.checkpoint, self.placement = checkpoint, placement
        self.components = Components(checkpoint, placement, compile)
        self.configs = self.components.configs
        self.scheduler = SchedulerConfig.from_json(checkpoint.component("scheduler") / "scheduler_config.json")
        self.settings = PlannerSettings.from_folder(checkpoint.folder)
        self.memory = PlanMemory()

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
        planner_loras: Sequence[LoraFile] = (),
        planner_file: str | os.PathLike | None = None,
        decoder_file: str | os.PathLike | None = None,
    ) -> "GlmImage":
        """A folder, a hub id or `modelscope:owner/name` -> the model; no weight is read yet.

        Device and dtype default to the best present. `placement` decides for each component instead. `compile` runs
        the decoder's blocks by torch.compile. `planner_loras` are those of `use_planner_loras`. `planner_file`
        and `decoder_file` are single files of weights, used instead of the checkpoint's own. Raises
        `CheckpointError` if a file is missing, truncated or of another model, `InputError` for a LoRA that does not
        fit, `DeviceError` if nothing can be compiled here.
        """
        checkpoint = resolve(path_or_id, revision, local_only, files=weight_files(planner_file, decoder_file))
        checkpoint.check()
        if placement is None:
            sizes = CheckpointSizes.of(checkpoint.folder, checkpoint.files)
            placement = choose(sizes, PlacementRequest(device, dtype))
        model = cls(checkpoint, placement, compile)
        model.components.on_load = progress
        model.use_planner_loras(*planner_loras)
        return model

    def use_planner_loras(self, *files: LoraFile) -> None:
        """From now on plan with these LoRA files, or (file, strength) pairs, and no others; without any, with none.

        They are read and checked here; a planner that is loaded already is loaded again when it is next used.
        """
        if self.components.use_loras(PLANNER, files):
            self.release(PLANNER)

    def use_loras(self, *files: LoraFile) -> None:
        """From now on draw with these LoRA files of the decoder, as `use_planner_loras` has it for plans."""
        if self.components.use_loras(DECODER, files):
            self.release(DECODER)

    @property
    def planner(self) -> Planner:
        return self.components[PLANNER]

    @property
    def glyph_encoder(self) -> GlyphEncoder:
        return self.components[GLYPH]

    @property
    def transformer(self) -> Dit:
        return self.components[DECODER]

    @property
    def vae(self) -> Vae:
        return self.components[VAE]

    @property
    def codebook_size(self) -> int:
        return self.configs[PLANNER].vq_config.num_embeddings

    def release(self, *names: str) -> None:
        """Free components by their folder names, all without any; they load again when used."""
        self.components.release(*names)
        if PLANNER not in self.components.loaded:
            self.memory = PlanMemory()

    @contextlib.contextmanager
    def _stage(self, stage: str, component: str) -> Iterator[torch.device]:
        """Make room for a stage of the placement and make its component's device the current one."""
        leaving = [name for name in self.placement.leaving(stage) if name in self.components.loaded]
        if leaving:
            self.release(*leaving)
        with self.components.on_device(component) as device:
            yield device

    def plan(
        self,
        prompt: Prompt,
        height: int,
        width: int,
        images: Sequence[Image.Image] | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        count: int = 1,
        plan_rows: int | None = None,
        layout: Layouts | None = None,
        controls: dict[str, GridControl] | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """Plan `count` images for each prompt; the arguments are those of `PlanRequest`.

        `layout` (a `Layout`, a `LayoutControl` with strengths, or a list with one for each image) favours or imposes
        its texts' tokens in their boxes. `controls` may bias or force any tokens.
        """
        request = PlanRequest(prompt, height, width, images, seed, count, temperature, top_p, plan_rows)
        return self.make_plan(request, layout, controls, progress)

    def make_plan(
        self,
        request: PlanRequest,
        layout: Layouts | None = None,
        controls: dict[str, GridControl] | None = None,
        progress: Progress | None = None,
    ) -> Plan:
        """The plan that a request asks for; everything is checked before a weight is read."""
        rows = control_rows(layout, request.rows, request.height, request.width)
        prepared, dtype = self.settings.prepare(request), self.placement.dtypes[PLANNER]
        with self._stage("planning", PLANNER) as device:
            if rows:
                of_layout = plan_controls_for(rows, self.planner, prepared, self.settings.processor, device, dtype)
                controls = merge_controls(controls or {}, of_layout)
            more = {"controls": controls, "memory": self.memory, "progress": progress}
            more["loras"] = self.components.used_loras(PLANNER)
            return make_plan(self.planner, prepared, device, dtype, **more)

    def plan_of_image(self, image: Image.Image, prompt: str = "", pixels: int | None = None) -> Plan:
        """The plan that shows an image, fitted to multiples of 32 px and about so many `pixels` (None: its own).

        `prompt` only says, in quotes, which texts are rendered again.
        """
        image, dtype = fitted(image, pixels), self.placement.dtypes[PLANNER]
        with self._stage("planning", PLANNER) as device:
            return plan_of_images(self.planner, [image], prompt, self.settings.processor, device, dtype)

    def denoise(
        self,
        plan: Plan,
        steps: int = 50,
        guidance_scale: float = 1.5,
        seed: int = 0,
        *,
        progress: Progress | None = None,
        **settings,
    ) -> torch.Tensor:
        """Denoise a plan: float32 latents (B, 16, H/8, W/8), normalised, on the decoder's device.

        `settings` are those of `denoise_steps`.
        """
        for done, latents in enumerate(self.denoise_steps(plan, steps, guidance_scale, seed, **settings), start=1):
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
        layout: Layouts | None = None,
        noise: torch.Tensor | None = None,
        **settings,
    ) -> Iterator[torch.Tensor]:
        """The latents after each step.

        `settings` are the other fields of `DenoiseOptions`. `layout` is as in `plan`; its texts are rendered unless
        `glyph_texts` are given. `noise` (B, 16, H/8, W/8) overrides the seed.
        """
        options = DenoiseOptions.of(steps=steps, guidance_scale=guidance_scale, seed=seed, **settings)
        self._check_plan(plan)
        rows = control_rows(layout, len(plan), plan.height, plan.width)
        texts = texts_for(rows, plan.prompts, options)
        visible = attention_mask_for(rows, texts, plan.height, plan.width)
        times = schedule(self.scheduler, steps, patch_count(plan.height, plan.width))
        shape = noise_shape(len(plan), plan.height, plan.width)
        noise = sample_noise(shape, seed) if noise is None else check_noise(noise, shape)
        hold = hold_for(rows, self.encode, noise, plan.height, plan.width)
        with self._stage("drawing", DECODER) as device:
            embeds = self._glyphs(texts, named=options.reads_as_reference and not rows)
            passes = self._passes(plan, embeds, options, visible, round(rows[0].attention * steps) if rows else 0)
            noise, shown = noise.to(device, torch.float32), passes.conditional
            assert_on(device, noise=noise, glyphs=shown.glyphs, prior=shown.prior, tables=shown.cos)
        return denoise_steps(self.transformer, times, noise, passes, hold, options.approximations)

    def _check_plan(self, plan: Plan) -> None:
        codebook = self.configs[DECODER].prior_vq_quantizer_codebook_size
        if plan.codebook_size != codebook:
            raise InputError(
                f"the plan uses a codebook of {plan.codebook_size} tokens, this decoder one of {codebook}; "
                "plan with the same checkpoint"
            )

    def _passes(self, plan, glyphs, options: DenoiseOptions, glyph_visible, controlled_steps: int) -> CfgPasses:
        """What each step computes, from texts' embeddings and their mask, tokens and references."""
        device, dit = self.placement.devices[DECODER], self.transformer
        ids, grid = plan.prior_token_ids.to(device), tuple(side * TOKEN // PATCH for side in plan.grid)
        embeds, mask = glyphs
        about = {"glyph_mask": mask, "references": self._reference_cache(plan), "repeats": TOKEN // PATCH}
        conditional, controlled, unconditional = dit.prepare(embeds, ids, grid, **about), None, None
        if glyph_visible is not None:
            controlled = dit.prepare(embeds, ids, grid, glyph_visible=glyph_visible.to(device), **about)
        if options.guidance_scale != 1:
            embeds, _ = self._glyphs([list(options.negative_glyph_texts or ())] * len(plan))
            unconditional = dit.prepare(embeds, ids, grid, prior_token_drop=True)
        passes = CfgPasses(conditional, unconditional, options.guidance_scale, controlled, controlled_steps)
        return replace(passes, batched=self._batched(options, passes, plan))

    def _batched(self, options: DenoiseOptions, passes: CfgPasses, plan: Plan) -> bool:
        """Whether both passes of guidance run as one batch."""
        if options.step_cache is not None or options.guidance_batching != "auto":
            return options.guidance_batching == "batched"
        dtype, device = self.placement.dtypes[DECODER], self.placement.devices[DECODER]
        images = ImageBatch(plan.height, plan.width, len(plan), steps=options.steps)
        work = decoder_work(self.configs[DECODER], dtype, images, True, device, self.placement.forms.get(DECODER))
        return passes.batches_well(device, work, DECODER in self.placement.streamed)

    def _glyphs(self, texts: list[list[str]], named: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings (B, L, C) and mask of each row's texts, on the decoder's device and in its dtype."""
        embeds, mask = self.glyph_encoder.embed_batch(shared_rows(texts), named)
        device = self.placement.devices[DECODER]
        embeds = embeds.expand(len(texts), -1, -1).to(device, self.placement.dtypes[DECODER])
        return embeds, None if mask is None else mask.to(device)

    def _reference_cache(self, plan: Plan) -> ReferenceCache | None:
        """Keys and values of the plan's references in every layer of the decoder."""
        if not plan.references:
            return None
        device, dtype = self.placement.devices[DECODER], self.placement.dtypes[DECODER]
        latents = [each.to(device, dtype) for each in encode_references(plan, self.encode)]
        ids = [reference_patch_ids(reference).to(device) for reference in plan.references]
        return ReferenceCache.join([self.transformer.encode_reference(*pair) for pair in zip(latents, ids)])

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) in 0..1 -> normalised latents (B, 16, H/8, W/8) on the VAE's device."""
        with self._stage("drawing", VAE) as device:
            pixels = image.movedim(-1, 1).to(device, self.placement.dtypes[VAE]) * 2 - 1
            return self.vae.normalise(self.vae.encode(pixels))

    def decode(self, latents: torch.Tensor, tiled: bool | None = None) -> torch.Tensor:
        """Normalised latents (B, 16, H/8, W/8) -> images (B, H, W, 3), float32 in 0..1, on the CPU.

        `tiled` None decodes the whole image where memory allows, else in slices, which give the same image.
        """
        with self._stage("drawing", VAE) as device:
            latents = self.vae.denormalise(latents.to(device, self.placement.dtypes[VAE]))
            assert_on(device, latents=latents)
            pixels = check_finite(self._decode(latents, device, tiled), "VAE")
            return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    def _decode(self, latents: torch.Tensor, device: torch.device, tiled: bool | None) -> torch.Tensor:
        if tiled is None:
            height, width = (LATENT * side for side in latents.shape[-2:])
            needed = decode_nbytes(self.configs[VAE], height, width, latents.dtype)
            if needed < memory_of(device).free:
                return retry_smaller(device, lambda: self.vae.decode(latents), lambda: self.vae.decode_tiled(latents))
        return self.vae.decode(latents) if tiled is False else self.vae.decode_tiled(latents)

    def generate(
        self,
        prompt: Prompt,
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
        plan_rows: int | None = None,
        layout: Layouts | None = None,
        noise: torch.Tensor | None = None,
        progress: Progress | None = None,
        **settings,
    ) -> list[Image.Image]:
        """Prompt to PIL images, `count` for each prompt; `plan_seed` is `seed` unless given.

        `layout` is as in `plan`, `noise` and `settings` as in `denoise_steps`. Everything is checked before anything
        is planned.
        """
        plan_seed = seed if plan_seed is None else plan_seed
        request = PlanRequest(prompt, height, width, images, plan_seed, count, temperature, top_p, plan_rows)
        options = DenoiseOptions.of(steps=steps, guidance_scale=guidance_scale, seed=seed, **settings)
        self.check(request, options, layout, noise)
        plan = self.make_plan(request, layout, progress=progress)
        latents = self.denoise(
            plan, steps, guidance_scale, seed, layout=layout, noise=noise, progress=progress, **settings
        )
        return to_pil(self.decode(latents))

    def check(
        self,
        request: PlanRequest,
        options: DenoiseOptions,
        layout: Layouts | None = None,
        noise: torch.Tensor | None = None,
    ) -> None:
        """Refuse what a plan of this request could not be denoised with, before it is made."""
        height, width = request.height, request.width
        schedule(self.scheduler, options.steps, 1)
        rows = control_rows(layout, request.rows, height, width)
        attention_mask_for(rows, texts_for(rows, request.row_prompts, options), height, width)
        if noise is not None:
            check_noise(noise, noise_shape(request.rows, height, width))


def texts_for(rows: list[LayoutControl], prompts: Sequence[str], options: DenoiseOptions) -> list[list[str]]:
    """The texts to render in each row: those given, else the layout's, else the prompts' own."""
    if rows and options.glyph_texts is None:
        return [row.layout.glyph_texts() for row in rows]
    return glyph_rows(prompts, options.glyph_texts, options.glyph_mode)
