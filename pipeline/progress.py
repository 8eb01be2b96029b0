"""How everything that takes long reports its progress."""

from typing import Any, Protocol


class Progress(Protocol):
    """Called with `done` of `total` units and what else is known, such as `stage` or `tokens`; may raise to interrupt.

    Units are bytes while loading, tokens while planning, steps while denoising, images otherwise.
    """

    def __call__(self, done: int, total: int, /, **about: Any) -> None: ...
