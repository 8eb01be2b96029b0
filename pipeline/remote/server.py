"""One server: how it is reached, what it can do, whether it lives, and whether it still works for nobody."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from .addresses import Endpoint, parse_engine
from .api_keys import find_key, how_to_set
from .catalog import AUTO, identify, known_engine
from .client import Client
from .engines import Engine
from .errors import (
    BusyError,
    CancelledError,
    KeyMissingError,
    RemoteError,
    ServerTimeoutError,
    UnavailableError,
    UnreachableError,
)
from .http import Deadline
from .images import ReceivedImage
from .planner import PlannedTokens, TokenRequest
from .request import ImageRequest

HEALTH_SECONDS = 10.0
HEALTH_BYTES = 1 << 20
BUSY_SECONDS = 2.0  # an engine that is asked whether it is busy and keeps silent for so long is


@dataclass(frozen=True)
class _Abandoned:
    """An image that its server goes on with: when it was sent and when given up."""

    sent: float
    given_up: float


# A server's work outlasts the batch that asked for it, so these are kept for the whole process.
_abandoned: dict[Endpoint, _Abandoned] = {}
_last_seconds: dict[Endpoint, float] = {}  # what the last image took
_lock = threading.Lock()


class Server:
    """A server and what we know of it. Its counters belong to the pool, which changes them under its lock.

    `unfit`: why this server cannot do what the batch asks for. `busy`: that it asked for patience when last heard.
    """

    def __init__(self, url: str, engine: str = AUTO):
        self.endpoint: Endpoint = parse_engine(url)
        self.engine: Engine | None = known_engine(engine, self.endpoint)
        self.key = None
        self.in_flight = self.failures = self.completed = 0
        self.back_off_until = 0.0
        self.unfit: InputError | None = None
        self.busy: BusyError | None = None
        self._died, self._death = 0.0, ""

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.engine.name})" if self.engine else str(self.endpoint)

    def connect(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Find the key, whether the server is well, and its engine.

        Health comes first: SGLang holds every other page back while it warms up.
        """
        self.key = find_key(self.endpoint)
        if self.engine and self.engine.needs_key and self.key is None:
            raise KeyMissingError(f"{self.endpoint} needs a key; {how_to_set(self.endpoint)}")
        client = self._client(self.deadline("answer", HEALTH_SECONDS, cancelled), HEALTH_BYTES)
        if self.health:
            client.check_health(self.health)
        self.engine = identify(client, self.engine)

    @property
    def health(self) -> str:
        return self.engine.health if self.engine else Engine.health

    def generate(
        self, request: ImageRequest | TokenRequest, seconds: float, cancelled: Callable[[], bool] | None = None
    ) -> ReceivedImage | PlannedTokens:
        begin = time.monotonic()
        self.engine.check(request)
        deadline = self.deadline(request.product, seconds, cancelled, lambda: self._death_since(begin))
        try:
            received = self.engine.generate(self._client(deadline, request.response_limit), request)
        except (CancelledError, ServerTimeoutError) as error:
            if error.begun and self.engine.goes_on:
                with _lock:
                    _abandoned[self.endpoint] = _Abandoned(begin, time.monotonic())
            raise
        with _lock:
            _last_seconds[self.endpoint] = time.monotonic() - begin
        return received

    def deadline(self, thing: str, seconds: float, cancelled=None, failed=None) -> Deadline:
        return Deadline(seconds, cancelled, f"{self.endpoint} gave no {thing}", failed)

    def may_retry(self, error: RemoteError) -> bool:
        """What may have been generated and charged is not asked for a second time."""
        return error.retry and not (error.maybe_done and (self.engine is None or self.engine.hosted))

    def watch_health(self, cancelled: Callable[[], bool]) -> None:
        """One look at the health page, on a connection of its own; every pending request hears of a dead engine.

        An engine that died may leave its requests without an answer for ever, while the server still accepts them.
        """
        if not self.health:
            return
        try:
            self._client(self.deadline("answer", HEALTH_SECONDS, cancelled), HEALTH_BYTES).check_health(self.health)
        except (UnavailableError, UnreachableError) as error:
            self._died, self._death = time.monotonic(), str(error)
        except RemoteError:
            return  # slow or odd, but there

    def _death_since(self, begin: float) -> RemoteError | None:
        if self._died < begin:
            return None
        return UnavailableError(f"{self._death}: its engine stopped while the work was under way")

    @property
    def occupied(self) -> bool:
        """Whether it works on an image that was given up: no engine drops one that it has begun."""
        return self.endpoint in _abandoned

    def watch_abandoned(self, limit: float, cancelled: Callable[[], bool]) -> None:
        """See whether the image given up is done; `limit` seconds later it counts as done in any case.

        Where the engine does not tell, as long as its last image took is waited for.
        """
        abandoned = _abandoned.get(self.endpoint)
        if abandoned is None:
            return
        client = self._client(self.deadline("answer", BUSY_SECONDS, cancelled), HEALTH_BYTES)
        now = time.monotonic()
        try:
            busy = self.engine.is_busy(client) if self.engine else None
        except CancelledError:
            return
        except RemoteError:
            busy = False  # not to be reached: the next request will show
        if busy is None:
            busy = now < abandoned.sent + _last_seconds.get(self.endpoint, 0.0)
        if not busy or now > abandoned.given_up + limit:
            with _lock:
                if _abandoned.get(self.endpoint) == abandoned:
                    del _abandoned[self.endpoint]

    def _client(self, deadline: Deadline, limit: int) -> Client:
        endpoint = self.endpoint
        if self.engine and not endpoint.path:
            endpoint = endpoint.below(self.engine.base)
        return Client(endpoint, self.key, deadline, limit)


def read_servers(text: str, engine: str = AUTO) -> list[Server]:
    """Addresses separated by commas, blanks or line ends -> servers, each once."""
    servers = {server.endpoint: server for server in (Server(url, engine) for url in text.replace(",", " ").split())}
    return list(servers.values())
