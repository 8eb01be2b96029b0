"""When each request for an image was sent, came or failed: how long a pool took to get over a dead server."""

import time
from dataclasses import dataclass

from comfyui_glm_image.pipeline.remote.errors import RemoteError
from comfyui_glm_image.pipeline.remote.server import Server


@dataclass(frozen=True)
class Entry:
    """`what` is "sent", "came" or "failed"."""

    moment: float
    url: str
    seed: int
    what: str


def log_requests(monkeypatch) -> list[Entry]:
    """A list that fills while servers are asked."""
    log, original = [], Server.generate

    def generate(self, request, *arguments):
        def note(what):
            log.append(Entry(time.monotonic(), str(self.endpoint), request.seed, what))

        note("sent")
        try:
            received = original(self, request, *arguments)
        except RemoteError:
            note("failed")
            raise
        note("came")
        return received

    monkeypatch.setattr(Server, "generate", generate)
    return log


def recovery(log: list[Entry], url: str) -> tuple[float, list[float]]:
    """When the server at `url` first cut an image, and when each image that it cut was sent again."""
    cut = {entry.seed: entry.moment for entry in log if entry.what == "failed" and entry.url == url}
    again: dict[int, float] = {}
    for entry in log:
        if entry.what == "sent" and entry.moment > cut.get(entry.seed, float("inf")):
            again.setdefault(entry.seed, entry.moment)
    return min(cut.values()), list(again.values())
