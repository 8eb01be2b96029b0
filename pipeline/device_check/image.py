"""One whole image by the measured models, each phase with its time and its peak of memory.

The weights may be random, so that what is checked is that every number is finite and the plan complete.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..benchmark.case import GUIDANCE, SAMPLING
from ..benchmark.decoder_stages import contexts
from ..benchmark.planner_stages import prompt_batch
from ..benchmark.timing import peak_bytes, reset_peak, time_call
from ..denoising.cfg import CfgPasses
from ..denoising.denoise import denoise_steps
from ..denoising.scheduler import schedule
from ..geometry import latent_size, patch_count, token_grid
from ..loading.checkpoint import DECODER, PLANNER, VAE
from ..loading.placement import gib
from ..models.config import SchedulerConfig
from ..plan import upsample_tokens
from ..planning.generate import decode
from ..planning.graphs import GraphRunner
from ..planning.prefill import prefill
from ..planning.steps import new_step
from .check import DeviceCheck
from .results import Figure

SCHEDULER = SchedulerConfig(num_train_timesteps=1000, base_shift=0.25, max_shift=0.75, base_image_seq_len=256)


def whole_image(check: DeviceCheck) -> Iterator[Figure]:
    """Plan, denoise and decode; models are made before their phase and freed after it, outside its time."""
    case = replace(check.case(), tokens=None)
    seconds = 0.0
    results = {}
    phases = {"plan": plan_tokens, "denoise": denoise_plan, "decode": decode_latents}
    for name, phase in phases.items():
        call = phase(check, case, results)
        reset_peak(check.device)
        taken = time_call(lambda name=name, call=call: results.__setitem__(name, call()), check.device)
        peak, seconds = peak_bytes(check.device), seconds + taken
        call = None
        check.bench.release()
        good = bool(torch.isfinite(results[name].float()).all())
        note = ("" if peak is None else f"peak {gib(peak)}") + ("" if good else ", not finite")
        yield Figure(name, taken, "s", note=note, good=good)
    rows, low, high = results["decode"].shape[-1], float(results["decode"].min()), float(results["decode"].max())
    target = "22 s on an H200" if rows == 1024 and check.request.steps == 50 else ""
    yield Figure("image", seconds, "s", target=target, note=f"pixels from {low:.2f} to {high:.2f}")


def plan_tokens(check: DeviceCheck, case, results: dict) -> Callable[[], torch.Tensor]:
    """All tokens of a plan, by a captured graph where there is one."""
    planner, device = check.bench.models.planner, check.device
    batch = prompt_batch(check.bench.models.configs[PLANNER], case)

    def call() -> torch.Tensor:
        prefix = prefill(planner, batch, device)
        step, graphs = new_step(planner, prefix, SAMPLING, 1), GraphRunner(planner, device)
        tokens = decode(planner, prefix, SAMPLING, [0], step=step, run=graphs)["full"]
        graphs.release()
        return tokens

    return call


def denoise_plan(check: DeviceCheck, case, results: dict) -> Callable[[], torch.Tensor]:
    """The latents of the plan after all steps, with guidance as it was faster."""
    bench, device = check.bench, check.device
    dit, config = bench.models.transformer, bench.models.configs[DECODER]
    ids = upsample_tokens(results["plan"], token_grid(case.height, case.width))
    ids %= config.prior_vq_quantizer_codebook_size
    shape = (1, config.in_channels, *latent_size(case.height, case.width))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    times = schedule(SCHEDULER, check.request.steps, patch_count(case.height, case.width))

    def call() -> torch.Tensor:
        shown, empty = contexts(dit, bench, case, device, ids=ids.to(device))
        passes = CfgPasses(shown, empty, GUIDANCE, batched=check.batched_guidance)
        return deque(denoise_steps(dit, times, noise, passes), maxlen=1).pop()

    return call


def decode_latents(check: DeviceCheck, case, results: dict) -> Callable[[], torch.Tensor]:
    """The pixels, by slices where the whole does not fit."""
    vae, dtype = check.bench.models.vae, check.bench.dtypes[VAE]

    def call() -> torch.Tensor:
        latents = vae.denormalise(results["denoise"].to(check.device, dtype))
        return vae.decode_tiled(latents).float().cpu()

    return call
