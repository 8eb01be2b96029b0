"""One HTTP exchange that can be cancelled, timed and bounded, over the standard library.

`http.client` does the protocol; the socket below it never blocks longer than `TICK`, so that cancelling closes the
connection at once. The address connected to is the one that was checked, no redirect is followed and no proxy used.
"""

import http.client
import io
import queue
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

from .addresses import Endpoint, refusal
from .api_keys import Key
from .errors import (
    BrokenResponseError,
    CancelledError,
    RemoteError,
    ServerTimeoutError,
    UnreachableError,
    UnsafeAddressError,
)

TICK = 0.1  # seconds between two looks at the deadline
CONNECT_SECONDS = 5.0
CHUNK = 1 << 16


class Deadline:
    """Checked during every wait; raises once the caller cancels, `failed` gives an error or `seconds` are over."""

    def __init__(
        self,
        seconds: float,
        cancelled: Callable[[], bool] | None = None,
        complaint: str = "no answer",
        failed: Callable[[], RemoteError | None] | None = None,
    ):
        self.end = time.monotonic() + seconds
        self.seconds = seconds
        self.cancelled = cancelled or (lambda: False)
        self.failed = failed or (lambda: None)
        self.complaint = complaint

    def check(self) -> None:
        if self.cancelled():
            raise CancelledError("cancelled")
        if error := self.failed():
            raise error
        if time.monotonic() > self.end:
            raise ServerTimeoutError(f"{self.complaint} within {self.seconds:g} s")


@dataclass(frozen=True)
class Request:
    """What to send. `path` starts with a slash and comes after the endpoint's own path."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)


def exchange(
    endpoint: Endpoint,
    request: Request,
    deadline: Deadline,
    limit: int,
    key: Key | None = None,
    foreign: bool = False,
) -> Response:
    """Send `request` and return the answer, whose body may have `limit` bytes at most.

    foreign: a host that another server named. It must be public and is not sent `key`, which messages hide anyway.
    """
    addresses = _resolve(endpoint, deadline, foreign)
    authorized = _authorize(request, None if foreign else key)
    with closing(_connect(endpoint, addresses, deadline)) as sock:
        try:
            return _talk(_Socket(sock, deadline), endpoint, authorized, key, limit)
        except http.client.IncompleteRead:
            raise BrokenResponseError(f"{endpoint} closed the connection in the middle of its answer") from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            # Only the kind of error is told: http.client's texts can quote what was sent.
            raise BrokenResponseError(f"{endpoint} broke the connection off ({type(error).__name__})") from None


def _authorize(request: Request, key: Key | None) -> Request:
    return replace(request, headers=request.headers | {"Authorization": key.header()}) if key else request


def _talk(sock: "_Socket", endpoint: Endpoint, request: Request, key: Key | None, limit: int) -> Response:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    if endpoint.scheme == "https":
        connection.default_port = 443  # for the Host header; `sock` already speaks TLS
    connection.sock = sock
    headers = {"User-Agent": "comfyui-glm-image", "Connection": "close", **request.headers}
    connection.request(request.method, endpoint.path + request.path, request.body or None, headers)
    try:
        return _receive(connection, endpoint, limit, key)
    except RemoteError as error:
        error.begun = True
        raise


def _receive(connection: http.client.HTTPConnection, endpoint: Endpoint, limit: int, key: Key | None) -> Response:
    response = connection.getresponse()
    if 300 <= response.status < 400:
        raise UnsafeAddressError(f"{endpoint} redirects{_target(response, key)}; redirects are not followed")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise BrokenResponseError(f"{endpoint} sent a compressed answer that was not asked for")
    return Response(response.status, response.headers, _read(response, endpoint, limit))


def _target(response: http.client.HTTPResponse, key: Key | None) -> str:
    """' to http://host', without the path, which may hold anything, and without the key, which a server could echo."""
    location = "".join(c for c in response.getheader("Location") or "" if c.isprintable())
    parts = (key.redact(location) if key else location).split("/")
    return f" to {'/'.join(parts[:3])[:100]}" if len(parts) > 2 and parts[0].endswith(":") else ""


def _read(response: http.client.HTTPResponse, endpoint: Endpoint, limit: int) -> bytes:
    """The body, given up as soon as it is known to be larger than `limit`."""
    expected = response.length
    if expected is not None and expected > limit:
        raise BrokenResponseError(f"{endpoint} announces {expected:,} bytes; at most {limit:,} are taken")
    body = bytearray()
    while chunk := response.read(CHUNK):
        body += chunk
        if len(body) > limit:
            raise BrokenResponseError(f"{endpoint} sends more than {limit:,} bytes; given up")
    if expected is not None and len(body) < expected:
        raise BrokenResponseError(f"{endpoint} sent {len(body):,} of {expected:,} bytes and closed the connection")
    return bytes(body)


def _resolve(endpoint: Endpoint, deadline: Deadline, public_only: bool) -> list[tuple]:
    """Checked (family, socket address) pairs; name resolution cannot be interrupted, so it gets a thread."""
    found: queue.SimpleQueue = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            found.put([])

    threading.Thread(target=look_up, daemon=True).start()
    answers = _wait(found, deadline)
    if not answers:
        raise UnreachableError(f"{endpoint}: the name {endpoint.host} is not known")
    reasons = [refusal(answer[4][0], endpoint, public_only) for answer in answers]
    if all(reasons):
        raise UnsafeAddressError(f"{endpoint} is refused: {reasons[0]}")
    return [(answer[0], answer[4]) for answer, reason in zip(answers, reasons) if reason is None]


def _wait(found: queue.SimpleQueue, deadline: Deadline):
    while True:
        deadline.check()
        try:
            return found.get(timeout=TICK)
        except queue.Empty:
            continue


def _connect(endpoint: Endpoint, addresses: list[tuple], deadline: Deadline) -> socket.socket:
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if _reach(sock, address, deadline):
                sock.settimeout(TICK)
                return _start_tls(sock, endpoint, deadline) if endpoint.scheme == "https" else sock
        except BaseException:
            sock.close()
            raise
        sock.close()
    raise UnreachableError(f"{endpoint} does not answer; is the server running and the port right?")


def _reach(sock: socket.socket, address: tuple, deadline: Deadline) -> bool:
    """Connect without ever blocking; False if refused or silent for `CONNECT_SECONDS`."""
    sock.setblocking(False)
    sock.connect_ex(address)
    end = time.monotonic() + CONNECT_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_WRITE)
        while time.monotonic() < end:
            deadline.check()
            if selector.select(TICK):
                return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return False


def _start_tls(sock: socket.socket, endpoint: Endpoint, deadline: Deadline) -> ssl.SSLSocket:
    context = ssl.create_default_context()  # verifies the chain and the name; SSL_CERT_FILE adds an own authority
    wrapped = context.wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
    try:
        while True:
            deadline.check()
            try:
                wrapped.do_handshake()
                return wrapped
            except TimeoutError:
                continue
    except ssl.SSLCertVerificationError as error:
        wrapped.close()
        raise UnsafeAddressError(f"{endpoint}: its certificate is not trusted ({error.verify_message})") from None
    except OSError as error:
        wrapped.close()
        raise UnreachableError(f"{endpoint}: no TLS connection ({type(error).__name__})") from None
    except RemoteError:
        wrapped.close()
        raise


class _Socket:
    """The part of a socket that `http.client` uses, looking at `deadline` at least every `TICK`."""

    def __init__(self, sock: socket.socket, deadline: Deadline):
        self._sock, self._deadline = sock, deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._deadline), CHUNK)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._deadline.check()
            try:
                view = view[self._sock.send(view) :]
            except TimeoutError:
                continue

    def close(self) -> None:
        """`exchange` closes the real socket; http.client would do so before the body is read."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline):
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            self._deadline.check()
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue
