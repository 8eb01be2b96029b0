"""Samplers, schedules and samplings that miss on a flow model such as GLM-Image, said before the steps are spent.

Which samplers miss was measured: `tools/samplers.py` runs every one on a flow whose answer is known.
"""

from collections.abc import Iterator

import torch
from comfy.model_sampling import CONST

STRONG = "its images come out too strong"
MISSES = {  # what is wrong, by the sampler's name in KSampler
    "ddpm": STRONG,
    "dpmpp_2s_ancestral_cfg_pp": STRONG,
    "res_multistep_ancestral": STRONG,
    "res_multistep_ancestral_cfg_pp": STRONG,
    "lcm": "it is made for distilled models, and images lose their contrast",
}
SIGMA_MAX = 1.001  # a flow's noise level is 1 at most


def doubts(sampler, sigmas: torch.Tensor, sampling, conds: dict[str, list[dict]]) -> Iterator[str]:
    """A sentence for each choice of a sampling that will miss or do nothing; `sampling` is the MODEL's or a node's."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    if name in MISSES:
        yield f"sampler {name} misses on flow models such as GLM-Image: {MISSES[name]}; use euler, dpmpp_2m or er_sde"
    if not isinstance(sampling, CONST):
        yield "the model's sampling is not a flow's, and images will be noise; use ModelSampling GLM-Image in its place"
    elif len(sigmas) and float(sigmas.max()) > SIGMA_MAX:
        yield (
            f"the sigmas begin at {float(sigmas.max()):.3g} where a flow's begin at 1, as those of AYS and GITS do, "
            "and images will be noise; use GLM-Image Sigmas or a scheduler of KSampler"
        )
    if any(entry.get("guidance") is not None for entries in conds.values() for entry in entries):
        yield "FluxGuidance has no effect on GLM-Image, which was not trained for it; use the sampler's cfg"
