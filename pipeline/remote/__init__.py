"""GLM-Image on a serving engine or the hosted API instead of this machine: prompt in, images out.

`generate(Job(...))` is the way in; `job.py` shows the whole path, `engines.py` the protocols, `docs/serving.md`
the use.
"""

from .catalog import AUTO, ENGINES
from .errors import CancelledError, RemoteError
from .job import MAX_COUNT, MAX_USD, Generated, Job, generate
from .pool import MAX_PARALLEL
from .request import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, PlannerSampling

__all__ = [
    "AUTO",
    "ENGINES",
    "MAX_COUNT",
    "MAX_GUIDANCE",
    "MAX_PARALLEL",
    "MAX_SEED",
    "MAX_STEPS",
    "MAX_USD",
    "CancelledError",
    "Generated",
    "Job",
    "PlannerSampling",
    "RemoteError",
    "generate",
]
