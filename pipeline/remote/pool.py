"""Many images over several servers: the least loaded first, failures tried again elsewhere, every image once."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ..errors import InputError
from .errors import BusyError, CancelledError, RemoteError, ServerTimeoutError, WarmingUpError
from .http import TICK
from .images import ReceivedImage
from .limits import MAX_PARALLEL, MAX_SECONDS
from .planner import PlannedTokens, TokenRequest
from .request import ImageRequest
from .server import Server

BACK_OFF, LONGEST_BACK_OFF = 0.5, 30.0  # seconds a failing server is left alone, doubled with every failure
HEALTH_INTERVAL = 1.0  # seconds between two looks at a server that works for us
WARM_UP_INTERVAL = 2.0


@dataclass
class Batch:
    """What came back: images (or plans) and errors by the request's place; `retries`: attempts that failed first."""

    images: dict[int, ReceivedImage | PlannedTokens] = field(default_factory=dict)
    errors: dict[int, RemoteError] = field(default_factory=dict)
    retries: int = 0
    seconds: float = 0.0

    def in_order(self) -> list[ReceivedImage | PlannedTokens]:
        return [self.images[place] for place in sorted(self.images)]


class Pool:
    """Servers that work together. `seconds` is the limit for one attempt at one image."""

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
        self._final: RemoteError | None = None  # what every further request would meet
        self._lock = threading.Condition()

    def connect(
        self, cancelled: Callable[[], bool] = lambda: False, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """Detect engines and look for life, everywhere at once; raise if no server is of use.

        Where none is ready but some warm up, those are waited for, `seconds` at most.
        """
        begin = time.monotonic()
        while all(errors := self._connect_all(cancelled)):
            warming = [error for error in errors if isinstance(error, WarmingUpError)]
            waited = time.monotonic() - begin
            if not warming or waited > self.seconds:
                raise type(errors[0])("; ".join(str(error) for error in errors))
            tell(f"{'; '.join(map(str, warming))}, {waited:.0f} s so far")
            _pause(WARM_UP_INTERVAL, cancelled)
        for server, error in zip(self.servers, errors):
            if error is not None:
                self._back_off(server, error)

    def _connect_all(self, cancelled: Callable[[], bool]) -> list[RemoteError | None]:
        with ThreadPoolExecutor(len(self.servers)) as executor:
            errors = list(executor.map(lambda server: _error_of_connecting(server, cancelled), self.servers))
        for error in errors:
            if error is not None and not error.retry:
                raise error
        return errors

    def run(
        self,
        requests: Sequence[ImageRequest | TokenRequest],
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        keep_going: bool = False,
    ) -> Batch:
        """Send all requests. An error ends the rest unless `keep_going`; `progress` is called in this thread."""
        self._leave_out_unfit(requests)
        begin, batch, stop = time.monotonic(), Batch(), threading.Event()
        monitors = [threading.Thread(target=self._monitor, args=(server, stop)) for server in self.servers]
        for monitor in monitors:
            monitor.start()
        with ThreadPoolExecutor(max(1, min(self.parallel, len(requests)))) as executor:
            try:
                places = {
                    executor.submit(self._generate, request, lambda: stop.is_set() or cancelled()): place
                    for place, request in enumerate(requests)
                }
                self._collect(places, batch, requests[0].product, cancelled, progress, keep_going)
            finally:
                stop.set()
                executor.shutdown(wait=True, cancel_futures=True)
                for monitor in monitors:
                    monitor.join()
        batch.retries, batch.seconds = self.failed_attempts, time.monotonic() - begin
        return batch

    def _leave_out_unfit(self, requests: Sequence[ImageRequest]) -> None:
        """Note which servers cannot do what is asked for; raise, before anything is sent, if none can."""
        for server in self.servers:
            try:
                for request in requests if server.engine else ():
                    server.engine.check(request)
            except InputError as error:
                server.unfit = error
        if all(server.unfit for server in self.servers):
            raise self.servers[0].unfit

    def _monitor(self, server: Server, stop: threading.Event) -> None:
        while True:
            if server.occupied:
                server.watch_abandoned(self.seconds, stop.is_set)
            if server.in_flight:
                server.watch_health(stop.is_set)
            if stop.wait(HEALTH_INTERVAL):
                return

    def _collect(
        self, places: dict[Future, int], batch: Batch, product: str, cancelled, progress, keep_going: bool
    ) -> None:
        pending = set(places)
        while pending:
            done, pending = wait(pending, TICK, FIRST_COMPLETED)
            if cancelled():
                raise CancelledError("cancelled")
            for future in done:
                try:
                    batch.images[places[future]] = future.result()
                except RemoteError as error:
                    if not keep_going:
                        raise _with_count(error, len(batch.images), len(places), product) from None
                    batch.errors[places[future]] = error
            if done:
                progress(len(batch.images) + len(batch.errors), len(places))

    def _generate(self, request, cancelled: Callable[[], bool]) -> ReceivedImage | PlannedTokens:
        """One answer from whichever server gives it; a server that let it time out is not asked for it again."""
        slow: set[Server] = set()
        last: RemoteError | InputError | None = None
        failed, end = 0, time.monotonic() + self.seconds
        while failed < self.attempts and (server := self._acquire(slow, cancelled, end)):
            try:
                if server.failures:
                    server.connect(cancelled)
                image = server.generate(request, self.seconds, cancelled)
            except InputError as error:  # of an engine that was not known when the batch began
                last = server.unfit = error
            except RemoteError as error:
                last = error
                if error.stops_batch:
                    self._final = error
                if not server.may_retry(error):
                    raise
                if isinstance(error, ServerTimeoutError):
                    slow.add(server)
                self._back_off(server, error)
                if not isinstance(error, BusyError):
                    failed += 1
                elif self._ready_at(slow) > end:  # all that is left of the time would go by with waiting
                    raise
            else:
                self._mark_success(server)
                return image
            finally:
                self._release(server)
        raise last

    def _acquire(self, slow: set[Server], cancelled: Callable[[], bool], end: float) -> Server | None:
        """The least loaded server that is ready, once there is one; None if none is left for this image.

        A server that failed is tried by one request at a time. One that still works on an image which was given up
        would only let the next one wait in its queue, so it is waited for here, where another may be ready first.
        Where every server asked for patience beyond `end`, their word is raised at once.
        """
        with self._lock:
            while True:
                if cancelled():
                    raise CancelledError("cancelled")
                if self._final:
                    raise self._final
                usable = [server for server in self.servers if server not in slow and not server.unfit]
                if not usable:
                    return None
                if all(server.busy and server.back_off_until > end for server in usable):
                    raise usable[0].busy
                now = time.monotonic()
                ready = [
                    server
                    for server in usable
                    if server.back_off_until <= now
                    and not (server.failures and server.in_flight)
                    and not server.occupied
                ]
                if ready:
                    server = min(ready, key=lambda s: (s.in_flight, s.failures, s.completed))
                    server.in_flight += 1
                    return server
                self._lock.wait(TICK)

    def _ready_at(self, slow: set[Server]) -> float:
        """When the first of the servers that are left for an image may be asked again."""
        with self._lock:
            usable = [server.back_off_until for server in self.servers if server not in slow and not server.unfit]
        return min(usable, default=0.0)

    def _release(self, server: Server) -> None:
        with self._lock:
            server.in_flight -= 1
            self._lock.notify_all()

    def _mark_success(self, server: Server) -> None:
        with self._lock:
            server.completed += 1
            server.failures, server.back_off_until, server.busy = 0, 0.0, None

    def _back_off(self, server: Server, error: RemoteError) -> None:
        with self._lock:
            self.failed_attempts += 1
            server.busy = error if isinstance(error, BusyError) else None
            now = time.monotonic()
            if server.back_off_until > now and server.failures:
                return  # one breakdown, however many requests it took with it
            pause = error.retry_after or min(BACK_OFF * 2**server.failures, LONGEST_BACK_OFF)
            server.back_off_until = now + pause
            server.failures += 1


def _error_of_connecting(server: Server, cancelled: Callable[[], bool]) -> RemoteError | None:
    try:
        server.connect(cancelled)
    except RemoteError as error:
        return error
    return None


def _pause(seconds: float, cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if cancelled():
            raise CancelledError("cancelled")
        time.sleep(TICK)


def _with_count(error: RemoteError, done: int, total: int, product: str) -> RemoteError:
    """The error, saying what had arrived before it."""
    if done:
        error.args = (f"{error} ({done} of {total} {product}s had arrived)",)
    return error
