"""The diffusion transformer as a ComfyUI MODEL: any sampler, patch, LoRA or offloading node works on it.

`GlmImageModel` is ComfyUI's model around `pipeline.models.transformer.Dit`. An unpatched model has the schedule shift
1, so that schedulers lay out plain times in 0..1; `sample_at_size`, which wraps every sampling, shifts them for the
latent at hand. A model that *ModelSampling GLM-Image* (or another model sampling node) has patched is left as its
user chose. Either way the decoder gets the plain time, found again from sigma. Shapes: B batch, L glyph tokens, N
patches.
"""

import math
import sys
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP

from ...pipeline.denoising.scheduler import shift_mu
from ...pipeline.devices.capabilities import check_finite
from ...pipeline.devices.device import assert_on, current
from ...pipeline.errors import InputError
from ...pipeline.geometry import LATENT, PATCH, TOKEN
from ...pipeline.loading.single_files import weights_at
from ...pipeline.loading.weights import check_layers, settings_of
from ...pipeline.models.config import DitConfig, SchedulerConfig, VaeConfig
from ...pipeline.models.transformer import Dit
from ...pipeline.models.transformer_context import Context, ReferenceCache
from .latent_preview import rgb_factors
from .loading import Dtypes, check_form, choose_device, choose_dtypes, fill, manage
from .ops import computing_in
from .page import warn
from .patches import check_blocks, check_options, check_patches, patches_of
from .samplers import doubts
from .validation import CHANNELS, check_conditioning, check_numbers, enlargement

RUN = "glm_image_run"  # key in transformer_options
WRAPPER = "glm_image"


class Run:
    """What one sampling computes once: projected glyphs and priors, and the references' keys and values."""

    def __init__(self):
        self.contexts: dict[tuple, Context] = {}


class ComfyDit(Dit):
    """`Dit` behind the call that `BaseModel` makes."""

    def __init__(self, config: DitConfig, *, operations, dtype, device, compute_dtype):
        super().__init__(config, operations=computing_in(compute_dtype, operations), dtype=dtype, device=device)
        self.dtype = dtype
        # Other packs' nodes ask for these.
        self.patch_size, self.in_channels, self.out_channels = (
            config.patch_size,
            config.in_channels,
            config.out_channels,
        )

    @torch.compiler.disable(recursive=False)  # torch.compile of the whole model compiles `_velocity`
    def forward(self, x, timestep, context, control=None, transformer_options=None, **conditions):
        """(B, 16, H/8, W/8) latents at (B,) times, (B, L, C) glyph embeddings -> velocity of the latents' shape.

        Wrappers of `DIFFUSION_MODEL` run around all of it; one that changes `context` has it projected anew.
        """
        options = {} if transformer_options is None else transformer_options
        check_patches(options, self.config.num_layers)
        check_blocks(self.transformer_blocks, self.config.num_layers)
        run = partial(self._run, context)
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        if not wrappers:
            return run(x, timestep, context, options, **conditions)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(run, self, wrappers)
        # A copy: EasyCache adds to what it is given, which is the sampler's own latent wherever no dtype is changed
        # (findings/easycache_in_place.sh).
        return executor.execute(x.clone(), timestep, context, options, **conditions)

    @torch.compiler.disable(recursive=False)  # else compiled once more for glyphs of another length
    def _run(self, given, x, timestep, context, transformer_options, target_size, **conditions):
        """What wrappers wrap; `given` is the context before them."""
        cached = transformer_options.get(RUN) if context is given else None
        prepared = self._prepared(cached or Run(), x, context, transformer_options, conditions)
        return self._velocity(x, timestep, target_size, prepared)

    def _velocity(self, x, timestep, target_size, context: Context) -> torch.Tensor:
        modulations = self.modulations(timestep, target_size, torch.zeros_like(target_size), x.dtype)
        return self.step(x, modulations, context)

    @torch.compiler.disable
    def _prepared(self, run: Run, latents, glyph_embeds, options: dict, conditions: dict) -> Context:
        """The run's context for these rows, with the patches of this pass."""
        uuids = tuple(options.get("uuids", ()))
        key = (*uuids, *latents.shape)
        if key not in run.contexts:
            images = slice(1) if len(uuids) == 1 else slice(None)
            run.contexts[key] = self._context(latents, glyph_embeds, images=images, **conditions)
            mark_texts_dynamic(run.contexts[key])
        patches = patches_of(options, latents)
        return run.contexts[key] if patches is None else replace(run.contexts[key], patches=patches)

    def _context(
        self,
        latents,
        glyph_embeds,
        prior_token_ids,
        prior_token_drop,
        images,
        glyph_mask=None,
        glyph_visible=None,
        reference_latents=(),
        reference_token_ids=(),
        **_,
    ) -> Context:
        """`images`: the rows whose references differ; all rows of one conditioning share them."""
        assert_on(latents.device, glyphs=glyph_embeds, plan=prior_token_ids)
        references = zip(reference_latents, reference_token_ids)
        written = [self.encode_reference(latent[images], ids[images]) for latent, ids in references]
        return self.prepare(
            glyph_embeds,
            prior_token_ids,
            self.grid(latents),
            prior_token_drop=prior_token_drop,
            glyph_mask=None if glyph_mask is None else glyph_mask.bool(),
            glyph_visible=None if glyph_visible is None else glyph_visible.bool(),
            references=ReferenceCache.join(written) if written else None,
            repeats=TOKEN // PATCH,
        )


def mark_texts_dynamic(context: Context) -> None:
    """Let torch.compile, where it is in use, compile once for texts of every length."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return
    dynamo.maybe_mark_dynamic(context.glyphs, 1)
    for table in (context.cos, context.sin):
        dynamo.maybe_mark_dynamic(table, 0)
    if context.mask is not None:
        dynamo.maybe_mark_dynamic(context.mask, 3)


class Latents(comfy.latent_formats.LatentFormat):
    """Latents outside the model are the VAE's own; inside they are normalised by the checkpoint's figures.

    The preview's factors are fitted when a preview first asks for them.
    """

    latent_channels = CHANNELS

    def __init__(self, config: VaeConfig, vae_folder: Path):
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1)
        self.config, self.vae_folder = config, vae_folder

    @cached_property
    def _colours(self):
        return rgb_factors(self.vae_folder, self.config) or (None, None)

    @property
    def latent_rgb_factors(self):
        return self._colours[0]

    @property
    def latent_rgb_factors_bias(self):
        return self._colours[1]

    def process_in(self, latent):
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def process_out(self, latent):
        return latent * self.std.to(latent) + self.mean.to(latent)


class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow with one fixed shift."""

    def __init__(self, shift: float):
        super().__init__()
        self.set_parameters(shift=shift, multiplier=1000)


class GlmImageModel(comfy.model_base.BaseModel):
    def __init__(self, config: "ModelConfig", device=None):
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=device, unet_model=ComfyDit)
        self.memory_usage_factor_conds = ()  # references are counted in `memory_required`

    @property
    def dit_config(self) -> DitConfig:
        return self.diffusion_model.config

    def shift_for(self, latents: torch.Size) -> float:
        """The schedule's shift for latents of this shape; a patch is 2 latents on a side."""
        return shift_mu(self.model_config.scheduler, latents[-2] // 2 * (latents[-1] // 2))

    def process_timestep(self, timestep, x, **_):
        """What the sampling calls time -> the decoder's: the plain time - 1, in 0..999."""
        sigma = timestep / getattr(self.model_sampling, "multiplier", 1.0)
        shift = self.shift_for(x.shape)
        return sigma / (shift - (shift - 1.0) * sigma) * 1000.0 - 1.0

    def extra_conds(self, **conditioning):
        """Conditioning as `GLMImageConditioning` writes it -> arguments of `ComfyDit.forward`."""
        noise = conditioning["noise"]
        conditioning = enlarged(conditioning, noise.shape)
        size = torch.tensor([[8.0 * side for side in noise.shape[-2:]]])
        found = {
            "c_crossattn": comfy.conds.CONDRegular(conditioning["cross_attn"]),
            "prior_token_ids": comfy.conds.CONDRegular(conditioning["prior_token_ids"]),
            "prior_token_drop": comfy.conds.CONDConstant(conditioning["prior_token_drop"]),
            "target_size": comfy.conds.CONDRegular(size),
        }
        for name in ("glyph_mask", "glyph_visible"):
            if name in conditioning:  # int, since ComfyUI casts every other type to the model's
                found[name] = comfy.conds.CONDRegular(conditioning[name].int())
        if conditioning.get("reference_latents"):
            latents = [self.process_latent_in(latent) for latent in conditioning["reference_latents"]]
            found["reference_latents"] = comfy.conds.CONDList(latents)
            found["reference_token_ids"] = comfy.conds.CONDList(conditioning["reference_token_ids"])
        return found

    def extra_conds_shapes(self, reference_latents=(), **_):
        pixels = sum(latent.shape[-2] * latent.shape[-1] for latent in reference_latents)
        return {"reference_latents": [1, CHANNELS, pixels]} if pixels else {}

    def memory_required(self, input_shape, cond_shapes=None):
        """Bytes of one pass, with the keys and values of references that stay for the whole sampling."""
        shapes = cond_shapes or {}
        config, dtype = self.dit_config, self.manual_cast_dtype or self.get_dtype()
        tokens = sum(math.prod(shape) for shape in shapes.get("reference_latents", ())) // CHANNELS // 4
        kept = 2 * config.num_layers * config.inner_dim * tokens * dtype.itemsize
        return super().memory_required(input_shape) + kept

    def state_dict_for_saving(self, *args, **kwargs):
        if any(getattr(layer, "lora_up", None) is not None for layer in self.modules()):
            raise InputError(
                "a LoRA beside weights of 8 or 4 bits cannot be saved with them; save without, or whole ones"
            )
        return super().state_dict_for_saving(*args, **kwargs)


class UnetConfig(dict):
    """Entries of a UNet's configuration are asked for by nodes that patch its layers: FreeU, HyperTile and others."""

    def __missing__(self, key):
        raise InputError(f"this node reads {key} of a UNet, which GLM-Image is not; remove the node")


def enlarged(conditioning: dict, latents: torch.Size) -> dict:
    """The conditioning of a latent that is a whole multiple of the plan's size: each token stands for several."""
    grid = conditioning["plan_grid"]
    times = enlargement(grid, (latents[-2] * LATENT // TOKEN, latents[-1] * LATENT // TOKEN))
    if times == 1:
        return conditioning
    patches, changed = (2 * grid[0], 2 * grid[1]), {}
    for name in ("prior_token_ids", "glyph_visible"):  # (B, N) and (B, N, L)
        if name in conditioning:
            square = conditioning[name].unflatten(1, patches)
            square = square.repeat_interleave(times, 1).repeat_interleave(times, 2)
            changed[name] = square.flatten(1, 2)
    return conditioning | changed


class ModelConfig(comfy.supported_models_base.BASE):
    """What `BaseModel` asks about the model, filled from the checkpoint instead of guessed from its weights."""

    unet_extra_config = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]
    memory_usage_factor = 2.0  # about 24 activations of the layers' width a patch

    def __init__(self, dit: DitConfig, scheduler: SchedulerConfig, vae: VaeConfig, vae_folder: Path):
        self.latent_format = lambda: Latents(vae, vae_folder)
        super().__init__({"config": dit})
        self.unet_config = UnetConfig(self.unet_config)
        self.scheduler = scheduler

    def set_compute(self, dtypes: Dtypes) -> None:
        self.set_inference_dtype(dtypes.storage, None if dtypes.storage == dtypes.compute else dtypes.compute)
        self.unet_config["compute_dtype"] = dtypes.compute


def open_decoder(folder: Path, weights: Path, dtype: str = "auto", device: str = "auto", operations=None):
    """A checkpoint's decoder, its weights from a folder or file -> MODEL; no weight is read yet.

    `operations` replaces ComfyUI's layer classes, as packs for other weight formats do.
    """
    dit = DitConfig.from_json(folder / "transformer" / "config.json")
    config = ModelConfig(
        dit,
        SchedulerConfig.from_json(folder / "scheduler" / "scheduler_config.json"),
        VaeConfig.from_json(folder / "vae" / "config.json"),
        folder / "vae",
    )
    stored, load_device = weights_at(weights), choose_device(device)
    dtypes, form = choose_dtypes(dtype, stored, load_device), check_form(dtype, stored, load_device)
    config.set_compute(dtypes)
    config.custom_operations = operations
    check_layers(dit, stored)
    with settings_of(stored):
        model = GlmImageModel(config, device="meta")
    fill(model.diffusion_model, stored, dtypes, lambda: Dit(model.dit_config), load_device, form)
    model.device = load_device
    patcher = manage(model, load_device)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER, sample_at_size)
    return patcher


def has_own_sampling(patcher) -> bool:
    """Whether a node has given this model a sampling of its user's choice."""
    return "model_sampling" in patcher.object_patches


def with_shift(patcher, shift: float):
    """A clone of the MODEL with one fixed shift."""
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", Sampling(shift))
    return clone


def shift_times(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Plain times in 0..1 -> sigmas, in the same float32 steps as `pipeline.denoising.scheduler.schedule`."""
    shift = torch.full_like(times, shift)  # a Python number over a tensor is rounded twice
    return shift / (shift + (1 / times - 1))


def sample_at_size(executor, noise, latent_image, sampler, sigmas, *arguments, **named):
    """Wrap one sampling: check its conditioning, keep what its steps share, shift its schedule to its latent."""
    guider = executor.class_obj
    patcher = guider.model_patcher
    check_conditioning(guider.conds, latent_image.shape, patcher.model)
    cfg = torch.tensor(float(getattr(guider, "cfg", 1.0)))
    check_numbers({"cfg": cfg, "sigmas": sigmas, "noise": noise, "latent": latent_image})
    check_options(guider.model_options, patcher.model.dit_config.num_layers)
    for doubt in doubts(sampler, sigmas, patcher.get_model_object("model_sampling"), guider.conds):
        warn(doubt)
    if not any("hooks" in cond for conds in guider.conds.values() for cond in conds):  # hooks change weights midway
        guider.model_options.setdefault("transformer_options", {})[RUN] = Run()
    with current(patcher.load_device):
        if has_own_sampling(patcher):
            return check_finite(executor(noise, latent_image, sampler, sigmas, *arguments, **named), "decoder")
        shift = patcher.model.shift_for(latent_image.shape)
        guider.model_patcher = with_shift(patcher, shift)
        try:
            times = shift_times(sigmas, shift)
            return check_finite(executor(noise, latent_image, sampler, times, *arguments, **named), "decoder")
        finally:
            guider.model_patcher = patcher
