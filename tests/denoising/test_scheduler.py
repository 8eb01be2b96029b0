"""The schedule, bit for bit against diffusers' scheduler driven as its pipeline drives it."""

import pytest
import torch
from comfyui_glm_image.pipeline.denoising.scheduler import euler_step, schedule, shift_mu
from comfyui_glm_image.pipeline.errors import InputError
from comfyui_glm_image.pipeline.models.config import SchedulerConfig


@pytest.fixture(scope="module")
def config(references):
    return SchedulerConfig.from_json(references("plain")[0] / "scheduler" / "scheduler_config.json")


@pytest.fixture(scope="module")
def pipe(references):
    return references("plain")[1]


def reference_run(pipe, steps, height, width):
    """(sigmas, decoder times) that diffusers' pipeline uses, read off while it runs."""
    times = []
    transformer = pipe.transformer

    def record(*, hidden_states, timestep, **_):
        times.append(timestep[0].clone())
        return (torch.zeros_like(hidden_states),)

    pipe.transformer.forward, original = record, transformer.forward
    ids = torch.zeros(1, (height // 16) * (width // 16), dtype=torch.long)
    try:
        pipe(
            "x", height=height, width=width, num_inference_steps=steps, guidance_scale=1.0, output_type="latent",
            prior_token_ids=ids,
        )  # fmt: skip
    finally:
        pipe.transformer.forward = original
    return pipe.scheduler.sigmas, torch.stack(times)


@pytest.mark.parametrize("steps,height,width", [(1, 32, 32), (5, 64, 96), (28, 1024, 1024), (50, 2048, 1152)])
def test_schedule_equals_the_reference_bit_for_bit(config, pipe, steps, height, width):
    ours = schedule(config, steps, (height // 16) * (width // 16))
    if height * width < 10**5:
        sigmas, times = reference_run(pipe, steps, height, width)
    else:
        sigmas, times = reference_schedule(pipe, steps, (height // 16) * (width // 16))
    assert torch.equal(ours.sigmas, sigmas)
    assert torch.equal(ours.timesteps, times)


def reference_schedule(pipe, steps, patches):
    """The same two, for sizes that are too slow to run, by the pipeline's own functions."""
    import numpy as np
    from diffusers.pipelines.glm_image.pipeline_glm_image import calculate_shift

    times = np.linspace(1000, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    pipe.scheduler.set_timesteps(timesteps=times, sigmas=times / 1000, mu=calculate_shift(patches))
    return pipe.scheduler.sigmas, pipe.scheduler.timesteps - 1


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_sigmas_fall_from_one_to_zero_and_times_are_unshifted(config, steps):
    ours = schedule(config, steps, 4096)
    assert ours.sigmas[0] == 1 and ours.sigmas[-1] == 0
    assert (ours.sigmas[1:] < ours.sigmas[:-1]).all()
    assert ours.timesteps[0] == 999 and ours.steps == steps
    assert sum(ours.deltas()) == pytest.approx(-1, abs=1e-6)


def test_larger_images_stay_noisy_for_longer(config):
    assert shift_mu(config, 256) == 1.0
    assert (schedule(config, 10, 4096).sigmas[1:-1] > schedule(config, 10, 256).sigmas[1:-1]).all()


def test_euler_step_equals_the_reference_bit_for_bit(config, pipe):
    ours = schedule(config, 4, 24)
    reference_schedule(pipe, 4, 24)
    latents, velocity = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)
    for time, delta in zip(pipe.scheduler.timesteps, ours.deltas()):
        expected = pipe.scheduler.step(velocity, time, latents, return_dict=False)[0]
        assert torch.equal(euler_step(latents, velocity, delta), expected)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True])
def test_impossible_step_counts_are_refused(config, steps):
    with pytest.raises(InputError, match="1 to 1000"):
        schedule(config, steps, 64)
