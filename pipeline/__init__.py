"""GLM-Image in plain torch. Names load on first use, so that importing the package costs nothing."""

from importlib import import_module

_HOME = {"GlmImage": ".glm_image", "Plan": ".plan", "Reference": ".plan", "GlmImageError": ".errors"}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
