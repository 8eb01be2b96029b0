"""Servers on loopback that speak each protocol as its engine documents it, and break it in set ways when told to.

They are strict: a request that the real engine's documentation does not describe is answered with 4xx. A picture is of
one colour that tells its seed, so that a test knows which one it got.
"""

import base64
import email.parser
import email.policy
import io
import json
import re
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

KEY = "sk-contract-0123456789abcdef"
MODEL = "zai-org/GLM-Image"
GIGABYTE = 1 << 30
WAIT = 20.0  # seconds that any handler lives at most
FILTER_REASON = "System detected potentially unsafe or sensitive content in input or generation."


def colour(seed: int | None) -> tuple[int, int, int]:
    return (255, 255, 255) if seed is None else (seed % 256, seed // 256 % 256, 77)


def png(width: int, height: int, seed: int | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour(seed)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG file whose header says 50,000x50,000 pixels."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )


class Refusal(Exception):
    """An answer other than 200: status, JSON body and headers."""

    def __init__(self, status: int, body: dict, headers: dict | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


class Contract(ThreadingHTTPServer):
    """`fault`: what to do instead of drawing, a name from `FAULTS`; `seconds`: how long a picture takes.

    `requests` holds every request for a picture as (path, fields, references), `closed` the monotonic times at which
    clients hung up on a hanging request, `sent` the bytes of an endless answer.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, engine: str, fault: str | None = None, seconds: float = 0.0, context=None):
        super().__init__(("127.0.0.1", 0), Handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https" if context else "http"
        self.engine, self.fault, self.seconds = engine, fault, seconds
        self.requests: list[tuple[str, dict, list[Image.Image]]] = []
        self.authorizations: list[str | None] = []
        self.closed: list[float] = []
        self.sent = 0
        self.tasks: dict[str, int] = {}
        self.polls = 0
        self.elsewhere = ""
        self.on_draw: Callable[[int], None] = lambda count: None
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.open: set = set()
        self.dead = False
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request, client_address):
        with self.lock:
            dead = self.dead
            self.open.add(request)
        if dead:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self.lock:
            self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Clients that hang up are what some tests are about."""

    def die(self) -> None:
        """Stop at once: every open connection is cut, new ones are refused."""
        with self.lock:
            self.dead = True
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # already gone
        self.stopping.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Contract

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        pages = {"/health": self.health, "/v1/models": self.models, "/picture.png": self.picture}
        path = self.path.split("?")[0]
        if path in pages:
            return pages[path]()
        if path.startswith("/api/paas/v4/async-result/"):
            return self.guarded(lambda: self.async_result(path.rsplit("/", 1)[1]))
        self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.guarded(lambda: self.draw(body))

    def guarded(self, work):
        try:
            work()
        except Refusal as refusal:
            self.answer(refusal.status, refusal.body, refusal.headers)

    def health(self):
        self.answer(200, {"status": "ok"} if self.server.engine == "sglang" else b"")

    def models(self):
        if self.server.engine.startswith("zai"):
            return self.answer(404, {"detail": "Not Found"})
        owner = "sglang" if self.server.engine == "sglang" else "vllm"
        self.answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": owner}]})

    def picture(self):
        self.server.authorizations.append(self.headers.get("Authorization"))
        width, height, seed = (int(n) for n in re.findall(r"\d+", self.path.partition("?")[2]))
        self.answer(200, png(width, height, seed), {"Content-Type": "image/png"})

    def draw(self, body: bytes):
        self.server.authorizations.append(self.headers.get("Authorization"))
        protocol = {
            "/v1/chat/completions": chat,
            "/v1/images/generations": generations,
            "/v1/images/edits": edits,
            "/api/paas/v4/images/generations": zai,
            "/api/paas/v4/async/images/generations": zai,
        }.get(self.path)
        if protocol is None or not allowed(self.server.engine, self.path):
            raise Refusal(404, {"detail": "Not Found"})
        fields, references = protocol(self.headers, body)
        if self.server.engine == "vllm-omni" and "model" in fields:
            raise Refusal(400, {"detail": f"Model mismatch: request specifies '{fields['model']}'"})
        with self.server.lock:
            self.server.requests.append((self.path, fields, references))
            count = len(self.server.requests)
        self.server.on_draw(count)
        if self.server.fault:
            FAULTS[self.server.fault](self, fields)
        self.server.stopping.wait(self.server.seconds)
        self.answer_picture(fields)

    def answer_picture(self, fields: dict):
        width, height = size_of(fields)
        seed = fields.get("seed", fields.get("extra_body", {}).get("seed"))
        seed = None if seed is None else int(seed)
        if self.path == "/v1/chat/completions":
            url = "data:image/png;base64," + base64.b64encode(png(width, height, seed)).decode()
            return self.answer(200, chat_answer([{"type": "image_url", "image_url": {"url": url}}]))
        if self.path.endswith("/async/images/generations"):
            with self.server.lock:
                task = f"task-{len(self.server.tasks)}"
                self.server.tasks[task] = 0
            entry = {"model": "glm-image", "id": task, "request_id": "1", "task_status": "PROCESSING"}
            return self.answer(200, entry)
        if "/paas/v4/" in self.path:
            url = f"{self.server.elsewhere or self.server.url}/picture.png?{width},{height},7"
            return self.answer(200, {"created": 1760335349, "data": [{"url": url}], "content_filter": ALLOWED})
        data = base64.b64encode(png(width, height, seed)).decode()
        self.answer(200, {"created": 1701234567, "data": [{"b64_json": data, "url": None, "revised_prompt": None}]})

    def async_result(self, task: str):
        check_key(self.headers)
        with self.server.lock:
            self.server.polls += 1
            polls = self.server.polls
        if self.server.fault == "poll_fails_once" and polls == 2:
            raise Refusal(500, {"error": {"code": "1234", "message": "Network error, please try again later"}})
        if polls < 3:
            return self.answer(200, {"model": "glm-image", "request_id": "1", "task_status": "PROCESSING"})
        if self.server.fault == "task_fails":
            return self.answer(200, {"model": "glm-image", "request_id": "1", "task_status": "FAIL"})
        url = f"{self.server.url}/picture.png?1280,1280,7"
        self.answer(200, {"model": "glm-image", "task_status": "SUCCESS", "image_result": [{"url": url}]})

    def answer_plainly(self, status: int, text: str):
        self.answer(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def answer(self, status: int, body: dict | bytes, headers: dict | None = None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


ALLOWED = [{"role": "assistant", "level": 3}]
PATHS = {
    "vllm-omni": ("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"),
    "sglang": ("/v1/images/generations", "/v1/images/edits"),
    "zai": ("/api/paas/v4/images/generations", "/api/paas/v4/async/images/generations"),
}


def allowed(engine: str, path: str) -> bool:
    return path in PATHS[engine]


# What each documentation lets a client send --------------------------------------------------------------------------


def unprocessable(field: str, message: str) -> Refusal:
    return Refusal(422, {"detail": [{"loc": ["body", field], "msg": message, "type": "value_error"}]})


def check_fields(fields: dict, kinds: dict) -> None:
    for name, value in fields.items():
        if name not in kinds or not isinstance(value, kinds[name]):
            raise unprocessable(name, f"{name}: unexpected field or type")


SETTINGS = {"num_inference_steps": int, "guidance_scale": (int, float), "seed": int}


def chat(headers, body: bytes):
    if headers["Content-Type"] != "application/json":
        raise unprocessable("", "not JSON")
    fields = json.loads(body)
    check_fields(fields, {"messages": list, "extra_body": dict, "seed": int, "model": str})
    check_fields(fields["extra_body"], SETTINGS | {"height": int, "width": int})
    if "seed" in fields and "seed" in fields["extra_body"]:
        message = 'Diffusion request parameters were provided more than once: "seed"'
        raise Refusal(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
    (message,) = fields["messages"]
    if message["role"] != "user":
        raise unprocessable("messages", "role")
    if isinstance(message["content"], str):
        return fields, []
    *pictures, text = message["content"]
    if text["type"] != "text" or not pictures:
        raise unprocessable("messages", "the text comes last")
    return fields, [data_url(part["image_url"]["url"]) for part in pictures if part["type"] == "image_url"]


def data_url(url: str) -> Image.Image:
    head, data = url.split(",")
    if head != "data:image/png;base64":
        raise unprocessable("image_url", "not a data URL")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",))


IMAGES = {"prompt": str, "model": str, "n": int, "size": str, "response_format": str}


def generations(headers, body: bytes):
    fields = json.loads(body)
    check_fields(fields, IMAGES | SETTINGS)
    check_images(fields)
    return fields, []


def edits(headers, body: bytes):
    """multipart/form-data: text fields and files named image."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    if form.get_content_type() != "multipart/form-data":
        raise unprocessable("", "not a form")
    fields, pictures = {}, []
    for part in form.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if name == "image":
            pictures.append(Image.open(io.BytesIO(data), formats=("PNG",)))
        else:
            fields[name] = data.decode()
    if not pictures:
        raise Refusal(422, {"detail": "Field 'image' or 'url' is required"})
    check_fields(fields, dict.fromkeys(IMAGES | SETTINGS, str))
    check_images(fields)
    return fields, pictures


def check_images(fields: dict) -> None:
    if not fields.get("prompt"):
        raise unprocessable("prompt", "field required")
    if not re.fullmatch(r"\d+x\d+", fields.get("size", "1024x1024")):
        raise Refusal(400, {"detail": f"Invalid size format: '{fields['size']}'. Expected format: 'WIDTHxHEIGHT'"})
    if fields.get("response_format", "b64_json") != "b64_json" or not 1 <= int(fields.get("n", 1)) <= 10:
        raise unprocessable("response_format", "not supported")


def check_key(headers) -> None:
    if headers.get("Authorization") is None:
        message = "Authentication parameter not received in Header, unable to authenticate"
        raise Refusal(401, {"error": {"code": "1001", "message": message}})
    if headers["Authorization"] != f"Bearer {KEY}":
        # A server that repeats what it was given, key and all.
        raise Refusal(401, {"error": {"code": "1000", "message": f"{headers['Authorization']} is not valid"}})


def zai(headers, body: bytes):
    check_key(headers)
    fields = json.loads(body)
    known = {"model": str, "prompt": str, "size": str, "quality": str, "user_id": str}
    for name, value in fields.items():
        if name not in known or not isinstance(value, str):
            raise Refusal(400, {"error": {"code": "1214", "message": f"Parameter {name} is invalid."}})
    if fields["model"] != "glm-image":
        raise Refusal(400, {"error": {"code": "1211", "message": "Unknown Model, please check the model code."}})
    return fields, []


def size_of(fields: dict) -> tuple[int, int]:
    if "extra_body" in fields:
        return fields["extra_body"]["width"], fields["extra_body"]["height"]
    width, height = fields["size"].split("x")
    return int(width), int(height)


def chat_answer(content) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "created": 1234567890, "model": MODEL, "choices": [choice], "usage": {}}


# Ways to break it ----------------------------------------------------------------------------------------------------


def refuse(handler: Handler, fields: dict):
    if handler.server.engine == "zai":
        raise Refusal(400, {"error": {"code": "1214", "message": "Parameter size is invalid."}})
    raise Refusal(400, {"error": {"message": "height is too large for this server", "type": "BadRequestError"}})


def fail(handler: Handler, fields: dict):
    raise Refusal(500, {"error": {"code": 500, "message": "CUDA out of memory"}})


def fail_plainly(handler: Handler, fields: dict):
    handler.answer_plainly(500, f"Internal Server Error {handler.headers.get('Authorization')}")
    hang_up(handler)


def unavailable(handler: Handler, fields: dict):
    raise Refusal(503, {"detail": "Diffusion engine not initialized. Start server with a diffusion model."})


def busy(handler: Handler, fields: dict):
    code = "1302" if handler.server.engine == "zai" else 429
    message = {"error": {"code": code, "message": "Rate limit reached for requests"}}
    if len(handler.server.requests) == 1:
        raise Refusal(429, message, {"Retry-After": "1"})


def one_at_a_time(handler: Handler, fields: dict):
    """An account that may draw one picture at once: the others are turned away."""
    server = handler.server
    if not server.turn.acquire(blocking=False):
        raise Refusal(429, {"error": {"code": "1302", "message": "Rate limit reached for requests"}})
    try:
        server.stopping.wait(0.1)
    finally:
        server.turn.release()


def broke(handler: Handler, fields: dict):
    message = "Insufficient balance or no resource package. Please recharge."
    raise Refusal(429, {"error": {"code": "1113", "message": message}})


def stop_halfway(handler: Handler, fields: dict):
    data = json.dumps(chat_answer("x" * 100_000)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    hang_up(handler)


def hang_up(handler: Handler):
    handler.close_connection = True
    handler.wfile.flush()
    raise ConnectionAbortedError("on purpose")


def html(handler: Handler, fields: dict):
    page = b"<html><body>Welcome to the gateway</body></html>"
    handler.answer(200, page, {"Content-Type": "text/html"})
    hang_up(handler)


def text_in_base64(text: str):
    def answer(handler: Handler, fields: dict):
        if handler.path == "/v1/chat/completions":
            parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}]
            handler.answer(200, chat_answer(parts))
        else:
            handler.answer(200, {"created": 1, "data": [{"b64_json": text}]})
        hang_up(handler)

    return answer


def words(handler: Handler, fields: dict):
    handler.answer(200, chat_answer("Image generation completed but no images were produced."))
    hang_up(handler)


def announce_gigabyte(handler: Handler, fields: dict):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(GIGABYTE))
    handler.end_headers()
    stream(handler, lambda data: data)


def stream_gigabyte(handler: Handler, fields: dict):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    stream(handler, lambda data: b"%x\r\n%s\r\n" % (len(data), data))


def stream(handler: Handler, frame):
    """Up to 1 GB, as long as anybody reads it."""
    data, end = b"A" * (1 << 16), time.monotonic() + WAIT
    while handler.server.sent < GIGABYTE and time.monotonic() < end and not handler.server.stopping.is_set():
        handler.wfile.write(frame(data))
        handler.server.sent += len(data)
    hang_up(handler)


def drip(handler: Handler, fields: dict):
    """A header, then a byte now and then: never silent, never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    end = time.monotonic() + WAIT
    while time.monotonic() < end and not handler.server.stopping.is_set():
        handler.wfile.write(b" ")
        time.sleep(0.05)
    hang_up(handler)


def hang(handler: Handler, fields: dict):
    """Say nothing until the client hangs up, and note when it did."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and not handler.server.stopping.is_set():
        readable, _, _ = select.select([handler.connection], [], [], 0.02)
        if readable and not handler.connection.recv(1):
            handler.server.closed.append(time.monotonic())
            break
    hang_up(handler)


def redirect(handler: Handler, fields: dict):
    raise Refusal(307, {}, {"Location": handler.server.elsewhere + handler.path})


def withhold(handler: Handler, fields: dict):
    raise Refusal(
        400, {"contentFilter": [{"level": 1, "role": "user"}], "error": {"code": "1301", "message": FILTER_REASON}}
    )


def withhold_quietly(handler: Handler, fields: dict):
    handler.answer(200, {"created": 1, "data": [], "content_filter": [{"role": "assistant", "level": 0}]})
    hang_up(handler)


def withhold_chat(handler: Handler, fields: dict):
    answer = chat_answer(None)
    answer["choices"][0]["finish_reason"] = "content_filter"
    handler.answer(200, answer)
    hang_up(handler)


def other_size(handler: Handler, fields: dict):
    width, height = size_of(fields)
    text_in_base64(base64.b64encode(png(width // 2, height)).decode())(handler, fields)


def pass_on(handler: Handler, fields: dict):
    """The fault is in a later step."""


FAULTS = {
    "400": refuse,
    "500": fail,
    "busy": busy,
    "one at a time": one_at_a_time,
    "503": unavailable,
    "plain 500": fail_plainly,
    "broke": broke,
    "half": stop_halfway,
    "html": html,
    "bad base64": text_in_base64("!!!! not base64 !!!!"),
    "not a picture": text_in_base64(base64.b64encode(b"GIF89a" + bytes(100)).decode()),
    "cut picture": text_in_base64(base64.b64encode(png(96, 64)[:60]).decode()),
    "bomb": text_in_base64(base64.b64encode(bomb()).decode()),
    "other size": other_size,
    "words": words,
    "announced gigabyte": announce_gigabyte,
    "streamed gigabyte": stream_gigabyte,
    "drip": drip,
    "hang": hang,
    "redirect": redirect,
    "withheld": withhold,
    "withheld quietly": withhold_quietly,
    "withheld chat": withhold_chat,
    "poll_fails_once": pass_on,
    "task_fails": pass_on,
}
