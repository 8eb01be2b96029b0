"""What a running ComfyUI tells a page over its websocket: a client of just that, with the standard library."""

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE = 1, 2, 8
PREVIEW = 1  # kinds of binary message
TEXT_OF_NODE = 3
PREVIEW_OF_NODE = 4
MESSAGE = "glm_image.message"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Events:
    """`with Events(server.url, client) as events:`; iterate for (name, data).

    A preview is ("preview", JPEG bytes), a text shown at a node ("text", (node id, text)).
    """

    def __init__(self, url: str, client: str, seconds: float = 300):
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=seconds)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /ws?clientId={client} HTTP/1.1",
            f"Host: {where.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self.socket.sendall("".join(line + "\r\n" for line in (*lines, "")).encode())
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for kind, payload in self._frames():
            if kind == TEXT:
                message = json.loads(payload)
                yield message["type"], message["data"]
            elif kind == BINARY:
                yield from _picture(payload)

    def _frames(self):
        """(opcode, payload) of every message; ComfyUI sends each in one frame, unmasked."""
        while True:
            first, second = self.file.read(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack(">H", self.file.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.file.read(8))
            payload = self.file.read(length)
            if first & 15 == CLOSE:
                return
            yield first & 15, payload

    def until_done(self, prompt_id: str) -> list[tuple[str, object]]:
        """Everything up to the end of a prompt."""
        seen = []
        for name, data in self:
            seen.append((name, data))
            if name in ENDS and data["prompt_id"] == prompt_id:
                return seen
        raise ConnectionError("ComfyUI closed the connection")


def messages(seen: list[tuple[str, object]]) -> list[tuple[str, str]]:
    """(node id, text) of everything that was said at nodes."""
    return [(data["node"], data["text"]) for name, data in seen if name == MESSAGE]


def _picture(payload: bytes):
    (kind,) = struct.unpack(">I", payload[:4])
    if kind == PREVIEW:
        yield "preview", payload[8:]
    elif kind == PREVIEW_OF_NODE:
        (length,) = struct.unpack(">I", payload[4:8])
        yield "preview", payload[8 + length :]
    elif kind == TEXT_OF_NODE:
        (length,) = struct.unpack(">I", payload[4:8])
        yield "text", (payload[8 : 8 + length].decode(), payload[8 + length :].decode())
