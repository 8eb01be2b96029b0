"""GLM-Image on a serving engine or the hosted API instead of this machine: prompt in, pictures out.

`draw(Job(...))` is the way in; `job.py` shows the whole path, `engines.py` the protocols, `docs/serving.md` the use.
"""

from .engines import AUTO, ENGINES
from .errors import CancelledError, RemoteError
from .job import MAX_COUNT, MAX_USD, Drawn, Job, draw
from .pool import MAX_PARALLEL
from .request import MAX_GUIDANCE, MAX_SEED, MAX_STEPS

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
    "Drawn",
    "Job",
    "RemoteError",
    "draw",
]
