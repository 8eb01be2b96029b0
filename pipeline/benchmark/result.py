"""One measurement of one stage."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """One row: seconds are medians, `spread` the distance of the quartiles relative to it, `peak` bytes.

    `fastest` is the call that other work on the machine disturbed least. `share` is of the ceiling, which is the
    "memory" or the "matrix" rate; `ratio` is the peer's time over ours.
    """

    stage: str
    size: str | None
    batch: int
    amount: int
    unit: str
    seconds: float
    fastest: float
    spread: float
    calls: int
    share: float
    bound: str
    peak: int | None
    peer_seconds: float | None = None
    peer_fastest: float | None = None
    peer_spread: float | None = None

    @property
    def rate(self) -> float:
        return self.amount / self.seconds

    @property
    def ratio(self) -> float | None:
        return self.peer_seconds and self.peer_seconds / self.seconds

    def as_json(self) -> dict:
        return asdict(self) | {"rate": self.rate, "ratio": self.ratio}
