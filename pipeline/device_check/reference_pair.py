"""The reference's own pipeline on a checkpoint: transformers plans, diffusers denoises and decodes.

With `benchmark/peers.py` the only file that imports them, and only when asked. A component is on its device while it
works and waits in host memory otherwise, so that a card needs room for the largest one alone.
Shapes: N planned tokens, V codebook size.
"""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from ..benchmark import peers
from ..devices.memory import empty_cache
from ..errors import InputError
from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from ..loading.placement import Placement


def require() -> None:
    """Refuse before anything is loaded when the libraries are not installed."""
    if missing := peers.missing():
        raise InputError(
            f"a comparison needs {', '.join(missing)}, which make the reference's images; run "
            "pip install 'comfyui-glm-image[peer]'"
        )


class ReferencePair:
    """`folder` in the dtypes of a placement and on its devices."""

    def __init__(self, folder: Path, placement: Placement):
        self.folder, self.placement = folder, placement

    @cached_property
    def pipeline(self):
        import diffusers
        import transformers

        for logging in (transformers.logging, diffusers.utils.logging):
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        home, dtypes = self, self.placement.dtypes

        class Pipeline(diffusers.GlmImagePipeline):
            """Computes where its placement says, although other components wait elsewhere."""

            _execution_device = property(lambda _: home.placement.devices[home.working])
            dtype = property(lambda _: dtypes[DECODER])

        pipeline = Pipeline.from_pretrained(self.folder, dtype=dict(dtypes), local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @contextlib.contextmanager
    def on_device(self, *names: str) -> Iterator:
        """The pipeline, with these components where they work."""
        self.working, device = names[0], self.placement.devices[names[0]]
        components = [getattr(self.pipeline, name) for name in names]
        for component in components:
            component.to(device)
        try:
            yield self.pipeline
        finally:
            for component in components:
                component.to("cpu")
            empty_cache(device)

    @torch.no_grad()
    def plan(self, prompt: str, height: int, width: int, tokens: int, codebook: int) -> tuple[torch.Tensor, ...]:
        """The greedy plan -> (N,) tokens in planning order and the logits (N, V) that chose them, on the CPU."""
        with self.on_device(PLANNER) as pipeline:
            planner = pipeline.vision_language_encoder
            planner.generation_config.top_k = 1  # the pipeline always samples; this makes it greedy
            out, generate = {}, planner.generate

            def noting(**inputs):
                out.update(generate(**inputs, output_logits=True, return_dict_in_generate=True))
                return out["sequences"]

            planner.generate = noting
            try:
                pipeline.generate_prior_tokens(prompt, height, width)
            finally:
                del planner.generate
            logits = torch.stack([row[0, :codebook].float().cpu() for row in out["logits"][:tokens]])
            sequence = out["sequences"][0].cpu()
        return sequence[len(sequence) - len(out["logits"]) :][:tokens], logits

    @torch.no_grad()
    def glyphs(self, prompt: str) -> torch.Tensor:
        """(1, L, C) embeddings of the prompt's quoted texts."""
        with self.on_device(GLYPH) as pipeline:
            return pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)[0].float().cpu()

    @torch.no_grad()
    def denoise(self, prompt: str, ids: torch.Tensor, noise: torch.Tensor, **settings) -> list[torch.Tensor]:
        """The latents after each step, from plan tokens (1, 4*h*w) of 16 px and noise (1, 16, H/8, W/8)."""
        latents = []

        def note(_pipeline, _step, _sigma, tensors):
            latents.append(tensors["latents"].float().cpu())
            return {}

        with self.on_device(DECODER, GLYPH) as pipeline:
            device = self.placement.devices[DECODER]
            given = {"latents": noise.to(device), "prior_token_ids": ids.to(device)}
            pipeline(prompt, output_type="latent", callback_on_step_end=note, **given, **settings)
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents (1, 16, H/8, W/8) -> (1, H, W, 3) in 0..1 on the CPU."""
        with self.on_device(VAE) as pipeline:
            vae, device = pipeline.vae, self.placement.devices[VAE]
            mean, std = (
                torch.tensor(values, dtype=vae.dtype, device=device).view(1, -1, 1, 1)
                for values in (vae.config.latents_mean, vae.config.latents_std)
            )
            pixels = vae.decode(latents.to(device, vae.dtype) * std + mean, return_dict=False)[0]
            return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()
