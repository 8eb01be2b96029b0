"""What a check found, and what checks know."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch, which may be what is broken
    from ..loading.memory_needs import CheckpointSizes
    from ..loading.placement import Placement, PlacementRequest


@dataclass(frozen=True)
class CheckResult:
    """`status`: ok, info (nothing to do), warn (works, not well) or fail (does not work)."""

    status: str
    topic: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """What is to be placed: its name, the checkpoint's sizes and the request; `check` raises what cannot be made in the
    placement that was found.
    """

    name: str
    sizes: "CheckpointSizes"
    request: "PlacementRequest"
    check: "Callable[[Placement], None]" = lambda _: None


@dataclass(frozen=True)
class CheckContext:
    """What the user asked for: a device to try, and `wanted()`, which the check of the placement calls; it reports what
    that raises.
    """

    device: str | None = None
    wanted: Callable[[], Wanted] | None = None


Check = Callable[[CheckContext], Iterator[CheckResult]]


def run_checks(checks: Iterable[Check], context: CheckContext) -> list[CheckResult]:
    """All results; a check that falls over becomes one, and the others go on."""
    return [result for check in checks for result in guarded(check, context)]


def guarded(check: Check, context: CheckContext) -> Iterator[CheckResult]:
    topic = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        yield from check(context)
    except Exception as error:  # any fault of an installation: reported, and no reason to stop looking
        lines = str(error).strip().splitlines()
        yield CheckResult("fail", topic, f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
