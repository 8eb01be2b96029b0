"""What trades exactness for speed; nothing does unless it is asked for."""

from dataclasses import dataclass

from ..errors import InputError
from ..models.transformer_context import FirstBlockCache


@dataclass(frozen=True)
class Approximations:
    """`guidance_interval`: shares of the steps, from 0 to 1, between which guidance is computed; other steps run the
    conditional pass alone. `step_cache`: the threshold of each pass's `FirstBlockCache`, such as 0.1.
    """

    guidance_interval: tuple[float, float] | None = None
    step_cache: float | None = None

    def check(self) -> None:
        """Raise `InputError` for values that mean nothing."""
        if self.guidance_interval is not None:
            _check_interval(self.guidance_interval)
        if self.step_cache is not None and not (_is_number(self.step_cache) and 0 < self.step_cache < 1):
            raise InputError(
                f"step cache {self.step_cache!r} is not accepted; use a number between 0 and 1, such as 0.1"
            )

    def caches(self) -> tuple[FirstBlockCache | None, FirstBlockCache | None]:
        """Of the conditional and of the unconditional pass."""
        return (
            (None, None)
            if self.step_cache is None
            else (FirstBlockCache(self.step_cache), FirstBlockCache(self.step_cache))
        )

    def guides(self, step: int, steps: int) -> bool:
        """Whether guidance is computed in this step."""
        if self.guidance_interval is None:
            return True
        first, last = self.guidance_interval
        return round(first * steps) <= step < round(last * steps)


EXACT = Approximations()


def _check_interval(interval) -> None:
    shares = tuple(interval) if isinstance(interval, (list, tuple)) else ()
    if len(shares) != 2 or not all(map(_is_number, shares)) or not 0 <= shares[0] <= shares[1] <= 1:
        text = " to ".join(map(str, shares)) if shares else repr(interval)
        raise InputError(f"guidance interval {text} is not accepted; use two shares of the steps, from 0 to 1")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
