"""Servers on loopback that behave as each engine does, and break in set ways when told to.

An image is of one colour that tells the seed which reached the decoder, so that a test knows which one it got.
"""

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from comfyui_glm_image.tests.remote.faults import FAULTS, FILTER_REASON, WAIT, colour, image_file
from comfyui_glm_image.tests.remote.protocols import (
    KEY,
    MODEL,
    PATHS,
    Effect,
    Refusal,
    chat,
    chat_answer,
    check_key,
    edits,
    generations,
    plan,
    plan_failure,
    planned_tokens,
    sglang,
    size_of,
    vllm_omni,
    zai,
)
from PIL import Image

__all__ = ["FAULTS", "FILTER_REASON", "KEY", "Contract", "colour"]
VERSIONS = {"vllm-omni": "0.30.0", "sglang": "0.5.23", "sglang-planner": "0.5.23", "zai": ""}
CODEBOOK = 640  # of the small checkpoint
ALLOWED = [{"role": "assistant", "level": 3}]
READERS = {
    "/v1/chat/completions": chat,
    "/v1/images/generations": generations,
    "/v1/images/edits": edits,
    "/api/paas/v4/images/generations": zai,
    "/api/paas/v4/async/images/generations": zai,
    "/generate": plan,
}


class Contract(ThreadingHTTPServer):
    """`fault`: what to do instead of an image, a name from `FAULTS`; `seconds`: how long an image takes.

    An own engine works on one image at a time and finishes it, whether or not its client is still there. `version` is
    the engine's. `requests` holds every request for an image as (path, fields, references), `effects` what the engine
    made of it, `finished` how many it completed; `closed` the monotonic times at which clients hung up on a hanging
    request, `sent` the bytes of an endless response. `early_seeds`: seeds whose plan ends too early. A test clears
    `ready` for a server that warms up, and sets `engine_died` for one whose engine is gone.

    A planner's server counts seeds if it `repeats`; `on_plan` makes what it sends of the tokens.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, engine: str, fault: str | None = None, seconds: float = 0.0, context=None, version: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https" if context else "http"
        self.engine, self.fault, self.seconds = engine, fault, seconds
        self.version = version or VERSIONS[engine]
        self.requests: list[tuple[str, dict, list[Image.Image]]] = []
        self.effects: list[Effect] = []
        self.finished = 0
        self.early_seeds: set[int] = set()
        self.repeats = True
        self.ready, self.engine_died = threading.Event(), threading.Event()
        self.ready.set()
        self.authorizations: list[str | None] = []
        self.closed: list[float] = []
        self.sent = 0
        self.tasks: dict[str, int] = {}
        self.polls = 0
        self.elsewhere = ""
        self.on_draw: Callable[[int], None] = lambda count: None
        self.on_plan: Callable[[list[int]], object] = lambda tokens: tokens
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.worker = threading.Lock()
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
        pages = {
            "/health": self.health,
            "/v1/models": self.models,
            "/server_info": self.server_info,
            "/model_info": self.model_info,
            "/stats": self.stats,
            "/image.png": self.image,
        }
        path = self.path.split("?")[0]
        if path in pages:
            return self.guarded(pages[path])
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
            if isinstance(refusal.body, str):
                self.answer_plainly(refusal.status, refusal.body)
            else:
                self.answer(refusal.status, refusal.body, refusal.headers)

    def health(self):
        """SGLang says nothing while it warms up; both say so when the engine is gone."""
        server = self.server
        if server.engine == "zai":
            raise Refusal(404, {"detail": "Not Found"})
        if server.engine_died.is_set():
            raise Refusal(503, {"status": "unhealthy"})
        if not server.ready.is_set():
            return self.answer(503, b"")
        self.answer(200, {"status": "ok" if server.engine.startswith("sglang") else "healthy"})

    def models(self):
        if self.server.engine == "zai":
            raise Refusal(404, {"detail": "Not Found"})
        self.server.ready.wait(WAIT)
        owner = "sglang" if self.server.engine.startswith("sglang") else "vllm"
        self.answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": owner}]})

    def server_info(self):
        if not self.server.engine.startswith("sglang"):
            raise Refusal(404, {"detail": "Not Found"})
        page = {"model_path": MODEL, "version": self.server.version}
        if self.server.engine == "sglang-planner":
            page["enable_deterministic_inference"] = self.server.repeats
        self.answer(200, page)

    def model_info(self):
        """Of both of SGLang's servers, each with the architecture it serves."""
        if not self.server.engine.startswith("sglang"):
            raise Refusal(404, {"detail": "Not Found"})
        planner = self.server.engine == "sglang-planner"
        architecture = "GlmImageForConditionalGeneration" if planner else "GlmImagePipeline"
        self.answer(200, {"model_path": MODEL, "architectures": [architecture]})

    def stats(self):
        """SGLang's scheduler answers between two images."""
        if self.server.engine != "sglang":
            raise Refusal(404, {"detail": "Not Found"})
        with self.server.worker:
            self.answer(200, {"status": "ok", "model_path": MODEL})

    def image(self):
        self.server.authorizations.append(self.headers.get("Authorization"))
        width, height, seed = (int(n) for n in re.findall(r"\d+", self.path.partition("?")[2]))
        self.answer(200, image_file(width, height, seed), {"Content-Type": "image/png"})

    def draw(self, body: bytes):
        server = self.server
        server.authorizations.append(self.headers.get("Authorization"))
        if self.path not in PATHS[server.engine]:
            raise Refusal(404, {"detail": "Not Found"})
        fields, references = READERS[self.path](self.headers, body)
        with server.lock:
            server.requests.append((self.path, fields, references))
            count = len(server.requests)
        server.on_draw(count)
        if server.fault:
            FAULTS[server.fault](self, fields)
        if server.engine == "zai":
            server.stopping.wait(server.seconds)
            return self.answer_hosted(fields)
        if server.engine == "sglang-planner":
            return self.answer_plan(fields)
        effect = self.effect(fields, references)
        server.effects.append(effect)
        with server.worker:
            server.stopping.wait(server.seconds)
            server.finished += 1
        if server.engine_died.is_set():
            server.stopping.wait(WAIT)  # the request is never answered
        self.answer_image(effect)

    def effect(self, fields: dict, references: list) -> Effect:
        server = self.server
        if server.engine == "sglang":
            version = tuple(int(n) for n in server.version.split(".")[:3])
            return sglang(self.path, fields, references, version)
        effect = vllm_omni(self.path, fields, references)
        if effect.plan_seed in server.early_seeds:
            raise plan_failure()
        return effect

    def answer_image(self, effect: Effect):
        files = [
            image_file(effect.width, effect.height, None if effect.seed is None else effect.seed + k, effect.format)
            for k in range(effect.count)
        ]
        encoded = [base64.b64encode(data).decode() for data in files]
        if self.path == "/v1/chat/completions":
            parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in encoded]
            return self.answer(200, chat_answer(parts))
        images = [{"b64_json": data, "url": None, "revised_prompt": None} for data in encoded]
        self.answer(200, {"created": 1701234567, "data": images})

    def answer_plan(self, fields: dict):
        server = self.server
        server.stopping.wait(server.seconds)
        server.finished += 1
        tokens = planned_tokens(fields, CODEBOOK, server.repeats)
        self.answer(200, {"text": "", "output_ids": server.on_plan(tokens), "meta_info": {"completion_tokens": 1}})

    def answer_hosted(self, fields: dict):
        width, height = size_of(fields)
        if self.path.endswith("/async/images/generations"):
            with self.server.lock:
                task = f"task-{len(self.server.tasks)}"
                self.server.tasks[task] = 0
            entry = {"model": "glm-image", "id": task, "request_id": "1", "task_status": "PROCESSING"}
            return self.answer(200, entry)
        url = f"{self.server.elsewhere or self.server.url}/image.png?{width},{height},7"
        self.answer(200, {"created": 1760335349, "data": [{"url": url}], "content_filter": ALLOWED})

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
        url = f"{self.server.url}/image.png?1280,1280,7"
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
