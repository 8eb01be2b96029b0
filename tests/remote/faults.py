"""Ways to break a contract server, by name; each takes the handler of a request and its fields."""

import base64
import io
import json
import select
import struct
import time
import zlib

from comfyui_glm_image.tests.remote.protocols import Refusal, chat_answer, size_of
from PIL import Image

GIGABYTE = 1 << 30
WAIT = 20.0  # seconds that any handler lives at most
FILTER_REASON = "System detected potentially unsafe or sensitive content in input or generation."


def colour(seed: int | None) -> tuple[int, int, int]:
    return (255, 255, 255) if seed is None else (seed % 256, seed // 256 % 256, 77)


def image_file(width: int, height: int, seed: int | None = None, file_format: str = "PNG") -> bytes:
    """An image file of the one colour that tells `seed`."""
    buffer = io.BytesIO()
    options = {"compress_level": 1} if file_format == "PNG" else {"quality": 75}
    Image.new("RGB", (width, height), colour(seed)).save(buffer, file_format, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG file whose header says 50,000x50,000 px."""
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )


def refuse(handler, fields: dict):
    if handler.server.engine == "zai":
        raise Refusal(400, {"error": {"code": "1214", "message": "Parameter size is invalid."}})
    raise Refusal(400, {"error": {"message": "height is too large for this server", "type": "BadRequestError"}})


def fail(handler, fields: dict):
    raise Refusal(500, {"error": {"code": 500, "message": "CUDA out of memory"}})


def fail_plainly(handler, fields: dict):
    handler.answer_plainly(500, f"Internal Server Error {handler.headers.get('Authorization')}")
    hang_up(handler)


def unavailable(handler, fields: dict):
    raise Refusal(503, {"detail": "Diffusion engine not initialized. Start server with a diffusion model."})


def busy(handler, fields: dict):
    code = "1302" if handler.server.engine == "zai" else 429
    message = {"error": {"code": code, "message": "Rate limit reached for requests"}}
    if len(handler.server.requests) == 1:
        raise Refusal(429, message, {"Retry-After": "1"})


def always_busy(*wait: str):
    """Turns every request away, and says for how long if `wait` is given."""

    def refuse_turn(handler, fields: dict):
        headers = {"Retry-After": wait[0]} if wait else {}
        raise Refusal(429, {"error": {"code": "1302", "message": "Rate limit reached for requests"}}, headers)

    return refuse_turn


def one_at_a_time(handler, fields: dict):
    """An account that may draw one image at once: the others are turned away."""
    server = handler.server
    if not server.turn.acquire(blocking=False):
        raise Refusal(429, {"error": {"code": "1302", "message": "Rate limit reached for requests"}})
    try:
        server.stopping.wait(0.1)
    finally:
        server.turn.release()


def broke(handler, fields: dict):
    message = "Insufficient balance or no resource package. Please recharge."
    raise Refusal(429, {"error": {"code": "1113", "message": message}})


def stop_halfway(handler, fields: dict):
    data = json.dumps(chat_answer("x" * 100_000)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    hang_up(handler)


def hang_up(handler):
    handler.close_connection = True
    handler.wfile.flush()
    raise ConnectionAbortedError("on purpose")


def html(handler, fields: dict):
    page = b"<html><body>Welcome to the gateway</body></html>"
    handler.answer(200, page, {"Content-Type": "text/html"})
    hang_up(handler)


def text_in_base64(text: str):
    def answer(handler, fields: dict):
        if handler.path == "/v1/chat/completions":
            parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}]
            handler.answer(200, chat_answer(parts))
        else:
            handler.answer(200, {"created": 1, "data": [{"b64_json": text}]})
        hang_up(handler)

    return answer


def words(handler, fields: dict):
    handler.answer(200, chat_answer("Image generation completed but no images were produced."))
    hang_up(handler)


def announce_gigabyte(handler, fields: dict):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(GIGABYTE))
    handler.end_headers()
    stream(handler, lambda data: data)


def stream_gigabyte(handler, fields: dict):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    stream(handler, lambda data: b"%x\r\n%s\r\n" % (len(data), data))


def stream(handler, frame):
    """Up to 1 GB, as long as anybody reads it."""
    data, end = b"A" * (1 << 16), time.monotonic() + WAIT
    while handler.server.sent < GIGABYTE and time.monotonic() < end and not handler.server.stopping.is_set():
        handler.wfile.write(frame(data))
        handler.server.sent += len(data)
    hang_up(handler)


def drip(handler, fields: dict):
    """A header, then a byte now and then: never silent, never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    end = time.monotonic() + WAIT
    while time.monotonic() < end and not handler.server.stopping.is_set():
        handler.wfile.write(b" ")
        time.sleep(0.05)
    hang_up(handler)


def hang(handler, fields: dict):
    """Say nothing until the client hangs up, and note when it did."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and not handler.server.stopping.is_set():
        readable, _, _ = select.select([handler.connection], [], [], 0.02)
        if readable and not handler.connection.recv(1):
            handler.server.closed.append(time.monotonic())
            break
    hang_up(handler)


def redirect(handler, fields: dict):
    raise Refusal(307, {}, {"Location": handler.server.elsewhere + handler.path})


def withhold(handler, fields: dict):
    raise Refusal(
        400, {"contentFilter": [{"level": 1, "role": "user"}], "error": {"code": "1301", "message": FILTER_REASON}}
    )


def withhold_quietly(handler, fields: dict):
    handler.answer(200, {"created": 1, "data": [], "content_filter": [{"role": "assistant", "level": 0}]})
    hang_up(handler)


def withhold_chat(handler, fields: dict):
    answer = chat_answer(None)
    answer["choices"][0]["finish_reason"] = "content_filter"
    handler.answer(200, answer)
    hang_up(handler)


def other_size(handler, fields: dict):
    width, height = size_of(fields)
    text_in_base64(base64.b64encode(image_file(width // 2, height)).decode())(handler, fields)


def send_jpeg(handler, fields: dict):
    """A server that does not know the field `output_format`."""
    width, height = size_of(fields)
    text_in_base64(base64.b64encode(image_file(width, height, 1, "JPEG")).decode())(handler, fields)


def pass_on(handler, fields: dict):
    """The fault is in a later step."""


FAULTS = {
    "400": refuse,
    "500": fail,
    "busy": busy,
    "always busy": always_busy(),
    "busy for a minute": always_busy("60"),
    "one at a time": one_at_a_time,
    "503": unavailable,
    "plain 500": fail_plainly,
    "broke": broke,
    "half": stop_halfway,
    "html": html,
    "bad base64": text_in_base64("!!!! not base64 !!!!"),
    "not an image": text_in_base64(base64.b64encode(b"GIF89a" + bytes(100)).decode()),
    "cut image": text_in_base64(base64.b64encode(image_file(96, 64)[:60]).decode()),
    "bomb": text_in_base64(base64.b64encode(bomb()).decode()),
    "other size": other_size,
    "jpeg": send_jpeg,
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
