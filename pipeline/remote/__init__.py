"""GLM-Image on a serving engine or the hosted API instead of this machine: prompt in, images out.

`generate(Job(...))` is the way in; `job.py` shows the whole path, `engines.py` the protocols, `docs/serving.md`
the use. Names load on first use, so that ComfyUI starts without them.
"""

from importlib import import_module

_HOME = {
    **dict.fromkeys(("Generated", "Job", "generate"), ".job"),
    **dict.fromkeys(("CancelledError", "RemoteError"), ".errors"),
    "ENGINES": ".catalog",
    **dict.fromkeys(("GivenPlan", "PlannerSampling"), ".request"),
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
