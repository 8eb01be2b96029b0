"""The way of one request to one server: JSON and forms out, JSON objects and image files back."""

import json
import time
import uuid
from collections.abc import Sequence

from .addresses import Endpoint, parse_image_url
from .api_keys import Key
from .errors import RemoteError, UnsafeAddressError
from .http import TICK, Deadline, Request, exchange
from .responses import failure, health_failure, read_json

FETCHES = 3  # an image that is made, and maybe paid, is worth asking for again


class Client:
    """`limit`: bytes an answer may have."""

    def __init__(self, endpoint: Endpoint, key: Key | None, deadline: Deadline, limit: int):
        self.endpoint, self.key, self.deadline, self.limit = endpoint, key, deadline, limit

    def check_health(self, path: str) -> None:
        """Raise unless the server answers `path` well; a server without such a page is well."""
        response = exchange(self.endpoint, Request("GET", path), self.deadline, self.limit, self.key)
        if not 200 <= response.status < 300 and response.status not in (404, 405):
            raise health_failure(response, self.endpoint, self.key)

    def get(self, path: str) -> dict:
        return self._json(Request("GET", path, {"Accept": "application/json"}))

    def post(self, path: str, body: dict) -> dict:
        data = json.dumps(body).encode()
        return self._post(path, "application/json", data)

    def post_form(self, path: str, fields: dict, images: Sequence[bytes]) -> dict:
        """`fields` and PNG files, all named `image`, as multipart/form-data."""
        kind, data = multipart(fields, images)
        return self._post(path, kind, data)

    def _post(self, path: str, kind: str, data: bytes) -> dict:
        return self._json(Request("POST", path, {"Accept": "application/json", "Content-Type": kind}, data))

    def fetch(self, url: str) -> bytes:
        """The file at the address a server gave, which is on that server or at a public https host."""
        if self.key and self.key.is_in(url):
            raise UnsafeAddressError(f"{self.endpoint} put the key into an image's address, which is not followed")
        endpoint, path, own = parse_image_url(url, self.endpoint)
        for left in reversed(range(FETCHES)):
            try:
                return self._fetch(endpoint, path, own)
            except RemoteError as error:
                if not (error.retry and left):
                    error.maybe_done = True
                    raise
            self.pause(TICK)

    def _fetch(self, endpoint: Endpoint, path: str, own: bool) -> bytes:
        request = Request("GET", path, {"Accept": "image/*"})
        response = exchange(endpoint, request, self.deadline, self.limit, self.key, foreign=not own)
        if not 200 <= response.status < 300:
            raise failure(response, endpoint, self.key)
        return response.body

    def pause(self, seconds: float) -> None:
        """Wait without missing a cancellation."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.deadline.check()
            time.sleep(min(TICK, left))

    def _json(self, request: Request) -> dict:
        response = exchange(self.endpoint, request, self.deadline, self.limit, self.key)
        return read_json(response, self.endpoint, self.key)


def multipart(fields: dict, images: Sequence[bytes]) -> tuple[str, bytes]:
    """-> (content type, body)"""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for i, data in enumerate(images):
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="reference_{i + 1}.png"\r\n'
        parts += [head.encode(), b"Content-Type: image/png\r\n\r\n", data, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()
