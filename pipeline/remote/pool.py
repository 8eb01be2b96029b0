"""Many pictures over several servers: the least loaded first, failures tried again elsewhere, every picture once."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from PIL import Image

from ..errors import InputError
from .addresses import Endpoint, parse_engine
from .api_keys import find_key, how_to_set
from .client import Wire
from .engines import AUTO, Engine, detect, known_engine
from .errors import BusyError, CancelledError, KeyMissingError, RemoteError, ServerTimeoutError
from .http import TICK, Watch
from .images import answer_limit
from .request import PictureRequest

HEALTH_SECONDS = 10.0
HEALTH_BYTES = 1 << 20
REST, LONGEST_REST = 0.5, 30.0  # seconds a failing server is left alone, doubled with every failure
MAX_PARALLEL = 64
MAX_SECONDS = 7200


class Server:
    """A server and what we know of it. Its counters belong to the pool, which changes them under its lock."""

    def __init__(self, url: str, engine: str = AUTO):
        self.endpoint: Endpoint = parse_engine(url)
        self.engine: Engine | None = known_engine(engine, self.endpoint)
        self.key = None
        self.busy = self.failures = self.drawn = 0
        self.rest_until = 0.0

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.engine.name})" if self.engine else str(self.endpoint)

    def connect(self, watch: Watch) -> None:
        """Find key and engine, and whether the server is well."""
        self.key = find_key(self.endpoint)
        wire = self._wire(watch, HEALTH_BYTES)
        if self.engine is None:
            self.engine = detect(wire)
        elif self.engine.needs_key and self.key is None:
            raise KeyMissingError(f"{self.endpoint} needs a key; {how_to_set(self.endpoint)}")
        elif self.engine.health:
            wire.reach(self.engine.health)

    def draw(self, request: PictureRequest, watch: Watch) -> Image.Image:
        self.engine.check(request)
        return self.engine.draw(self._wire(watch, answer_limit(request)), request)

    def watch(self, thing: str, seconds: float, cancelled: Callable[[], bool] | None) -> Watch:
        return Watch(seconds, cancelled, f"{self.endpoint} gave no {thing}")

    def may_retry(self, error: RemoteError) -> bool:
        """What may have been drawn and charged is not asked for a second time."""
        return error.retry and not (error.maybe_done and (self.engine is None or self.engine.hosted))

    def _wire(self, watch: Watch, limit: int) -> Wire:
        endpoint = self.endpoint
        if self.engine and not endpoint.path:
            endpoint = endpoint.below(self.engine.base)
        return Wire(endpoint, self.key, watch, limit)


@dataclass
class Batch:
    """What came back: pictures and errors by the request's place; `retries` is how many attempts failed first."""

    pictures: dict[int, Image.Image] = field(default_factory=dict)
    errors: dict[int, RemoteError] = field(default_factory=dict)
    retries: int = 0
    seconds: float = 0.0

    def in_order(self) -> list[Image.Image]:
        return [self.pictures[place] for place in sorted(self.pictures)]


class Pool:
    """Servers that draw together. `seconds` is the limit for one attempt at one picture."""

    def __init__(self, servers: Sequence[Server], parallel: int = 4, seconds: float = 600.0, retries: int = 2):
        if not servers:
            raise InputError("no server is given; write its address, such as http://127.0.0.1:8091")
        if not 1 <= parallel <= MAX_PARALLEL:
            raise InputError(f"{parallel} requests at once; use 1 to {MAX_PARALLEL}")
        if not 0 < seconds <= MAX_SECONDS:
            raise InputError(f"a timeout of {seconds} s; use more than 0 and at most {MAX_SECONDS}")
        self.servers, self.parallel, self.seconds = list(servers), parallel, seconds
        self.attempts = retries + len(self.servers)
        self.failed_attempts = 0
        self._lock = threading.Condition()

    def connect(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Detect engines and look for life, everywhere at once; raise if no server is of use."""
        with ThreadPoolExecutor(len(self.servers)) as executor:
            watches = [server.watch("answer", HEALTH_SECONDS, cancelled) for server in self.servers]
            errors = list(executor.map(_error_of_connecting, self.servers, watches))
        for server, error in zip(self.servers, errors):
            if error is not None and not error.retry:
                raise error
            if error is not None:
                self._rest(server, error)
        if all(errors):
            raise type(errors[0])("; ".join(str(error) for error in errors))

    def run(
        self,
        requests: Sequence[PictureRequest],
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        keep_going: bool = False,
    ) -> Batch:
        """Draw all requests. An error ends the rest unless `keep_going`; `progress` is called in this thread."""
        for engine in filter(None, (server.engine for server in self.servers)):
            for request in requests:
                engine.check(request)
        begin, batch, stop = time.monotonic(), Batch(), threading.Event()
        with ThreadPoolExecutor(max(1, min(self.parallel, len(requests)))) as executor:
            try:
                places = {
                    executor.submit(self._draw, request, lambda: stop.is_set() or cancelled()): place
                    for place, request in enumerate(requests)
                }
                self._collect(places, batch, cancelled, progress, keep_going)
            finally:
                stop.set()
                executor.shutdown(wait=True, cancel_futures=True)
        batch.retries, batch.seconds = self.failed_attempts, time.monotonic() - begin
        return batch

    def _collect(self, places: dict[Future, int], batch: Batch, cancelled, progress, keep_going: bool) -> None:
        pending = set(places)
        while pending:
            done, pending = wait(pending, TICK, FIRST_COMPLETED)
            if cancelled():
                raise CancelledError("cancelled")
            for future in done:
                try:
                    batch.pictures[places[future]] = future.result()
                except RemoteError as error:
                    if not keep_going:
                        raise _with_count(error, len(batch.pictures), len(places)) from None
                    batch.errors[places[future]] = error
                    if error.stops_batch:  # what is under way may still arrive; what is not would fail alike
                        unsent = {other for other in pending if other.cancel()}
                        pending -= unsent
                        batch.errors |= dict.fromkeys((places[other] for other in unsent), error)
            if done:
                progress(len(batch.pictures) + len(batch.errors), len(places))

    def _draw(self, request: PictureRequest, cancelled: Callable[[], bool]) -> Image.Image:
        """One picture from whichever server gives it; a server that let it time out is not asked for it again."""
        slow: set[Server] = set()
        last: RemoteError | None = None
        failed, end = 0, time.monotonic() + self.seconds
        while failed < self.attempts and (server := self._take(slow, cancelled)):
            try:
                if server.failures:
                    server.connect(server.watch("answer", HEALTH_SECONDS, cancelled))
                picture = server.draw(request, server.watch("picture", self.seconds, cancelled))
            except RemoteError as error:
                last = error
                if not server.may_retry(error):
                    raise
                if isinstance(error, ServerTimeoutError):
                    slow.add(server)
                self._rest(server, error)
                if not isinstance(error, BusyError) or time.monotonic() > end:
                    failed += 1
            else:
                self._praise(server)
                return picture
            finally:
                self._give_back(server)
        raise last

    def _take(self, slow: set[Server], cancelled: Callable[[], bool]) -> Server | None:
        """The least loaded server that is not resting, once there is one; None if all were too slow already.

        A server that failed is tried by one request at a time.
        """
        with self._lock:
            while True:
                if cancelled():
                    raise CancelledError("cancelled")
                usable = [server for server in self.servers if server not in slow]
                if not usable:
                    return None
                now = time.monotonic()
                ready = [s for s in usable if s.rest_until <= now and not (s.failures and s.busy)]
                if ready:
                    server = min(ready, key=lambda s: (s.busy, s.failures, s.drawn))
                    server.busy += 1
                    return server
                self._lock.wait(TICK)

    def _give_back(self, server: Server) -> None:
        with self._lock:
            server.busy -= 1
            self._lock.notify_all()

    def _praise(self, server: Server) -> None:
        with self._lock:
            server.drawn += 1
            server.failures, server.rest_until = 0, 0.0

    def _rest(self, server: Server, error: RemoteError) -> None:
        with self._lock:
            self.failed_attempts += 1
            now = time.monotonic()
            if server.rest_until > now and server.failures:
                return  # one breakdown, however many requests it took with it
            server.rest_until = now + (error.retry_after or min(REST * 2**server.failures, LONGEST_REST))
            server.failures += 1


def _error_of_connecting(server: Server, watch: Watch) -> RemoteError | None:
    try:
        server.connect(watch)
    except RemoteError as error:
        return error
    return None


def _with_count(error: RemoteError, done: int, total: int) -> RemoteError:
    """The error, saying what had arrived before it."""
    if done:
        error.args = (f"{error} ({done} of {total} pictures had arrived)",)
    return error


def read_servers(text: str, engine: str = AUTO) -> list[Server]:
    """Addresses separated by commas, blanks or line ends -> servers, each once."""
    servers = {server.endpoint: server for server in (Server(url, engine) for url in text.replace(",", " ").split())}
    return list(servers.values())
