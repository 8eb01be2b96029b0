"""The protocols, each as its engine documents it: how to ask for a picture and where it stands in the answer.

Sources: the serving pages and API sources of vLLM-Omni (chat completions, image generation, image edit) and SGLang
(diffusion's OpenAI API), docs.z.ai (Generate Image, its asynchronous form, errors). None of them takes or returns a
plan.
"""

import base64
import re

from PIL import Image

from ..errors import InputError
from .addresses import Endpoint
from .client import Wire
from .errors import AccountError, BrokenAnswerError, ContentFilteredError, RefusedError, RemoteError
from .images import decode, picture_bytes
from .request import PictureRequest
from .responses import scrub

MODEL = "zai-org/GLM-Image"
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
POLL_SECONDS = 2.0
POLL_FAILURES = 5  # in a row


class Engine:
    """One protocol. `model` is the name the server gives its model, where that is known.

    hosted: every picture costs `usd` dollars, and a request that failed midway may have cost it. needs_key: nothing is
    sent without a key. exact: a picture of another size than asked for is no answer. ignores: settings of a request
    that have no effect.
    """

    name = ""
    base = ""  # path before the protocol's own, where the user gives none
    health = "/health"
    hosted = needs_key = False
    exact = True
    usd = 0.0
    ignores: tuple[str, ...] = ()
    note = ""

    def __init__(self, model: str | None = None):
        self.model = model

    def check(self, request: PictureRequest) -> None:
        """Raise `InputError` for what this protocol cannot ask for."""

    def draw(self, wire: Wire, request: PictureRequest) -> Image.Image:
        return decode(self.fetch(wire, request), request, wire.endpoint, self.exact)

    def fetch(self, wire: Wire, request: PictureRequest) -> bytes:
        """Ask and wait for the picture's file."""
        raise NotImplementedError


class VllmOmniChat(Engine):
    """vLLM-Omni's chat form, the older one. What it leaves out was read in release 0.30."""

    name = "vllm-omni-chat"
    note = "the seed sets the plan; the decoder's seed and guidance may stay those of the server's deploy file"

    def check(self, request: PictureRequest) -> None:
        if len(request.references) > 1:
            raise InputError(
                f"vLLM-Omni's chat form reads one reference image, not {len(request.references)}; "
                "choose the engine vllm-omni, which uses its images form"
            )

    def fetch(self, wire: Wire, request: PictureRequest) -> bytes:
        settings = request.settings()
        body = {"messages": [{"role": "user", "content": _chat_content(request)}]}
        if "seed" in settings:
            body["seed"] = settings.pop("seed")  # chat's own field; given twice, it is an error
        body["extra_body"] = {"height": request.height, "width": request.width} | settings
        return _inline(_chat_picture(wire.post("/v1/chat/completions", body), wire), wire)


def _chat_content(request: PictureRequest) -> str | list[dict]:
    """References before the text; text alone is a plain string."""
    if not request.references:
        return request.prompt
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in request.references]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": request.prompt}]


def _chat_picture(answer: dict, wire: Wire) -> str:
    """choices[0].message.content[i].image_url.url"""
    match answer:
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            raise ContentFilteredError(f"{wire.endpoint} withheld the picture: its content filter stopped it")
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            raise BrokenAnswerError(
                f"{wire.endpoint} answered with words instead of a picture: {scrub(text, wire.key)}"
            )
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            for part in parts:
                match part:
                    case {"image_url": {"url": str(url)}}:
                        return url
    raise BrokenAnswerError(f"{wire.endpoint} answered without a picture")


def _inline(url: str, wire: Wire) -> bytes:
    """The file in a data URL, or at the address of any other."""
    if not url.startswith("data:"):
        return wire.fetch(url)
    kind, comma, text = url.partition(",")
    if not comma or not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise BrokenAnswerError(f"{wire.endpoint} sent a data URL of '{scrub(kind[5:60], wire.key)}', not of an image")
    return picture_bytes(text, wire.endpoint)


class ImagesForm(Engine):
    """OpenAI's images form, which vLLM-Omni and SGLang share."""

    def fetch(self, wire: Wire, request: PictureRequest) -> bytes:
        fields = {"prompt": request.prompt, "n": 1, "size": request.size, "response_format": "b64_json"}
        fields |= request.settings()
        if self.model:
            fields["model"] = self.model
        if request.references:
            answer = wire.post_form(EDITS, fields, request.references)
        else:
            answer = wire.post(GENERATIONS, fields)
        return _images_picture(answer, wire)


def _images_picture(answer: dict, wire: Wire) -> bytes:
    """data[0].b64_json, or the file at data[0].url"""
    match answer:
        case {"data": [{"b64_json": str(text)}, *_]} if text:
            return picture_bytes(text, wire.endpoint)
        case {"data": [{"url": str(url)}, *_]} if url:
            return wire.fetch(url)
    raise BrokenAnswerError(f"{wire.endpoint} answered without a picture")


class VllmOmni(ImagesForm):
    """The images form, whose requests reach both stages whole; a model's name would have to match, so none is sent."""

    name = "vllm-omni"

    def __init__(self, model: str | None = None):
        super().__init__(None)


class SglangDiffusion(ImagesForm):
    name = "sglang"

    def __init__(self, model: str | None = None):
        super().__init__(model or MODEL)


class Zai(Engine):
    """z.ai and open.bigmodel.cn: text to image in set sizes; the server chooses steps, guidance and seed."""

    name = "zai"
    base = "/api/paas/v4"
    health = ""
    hosted = needs_key = True
    exact = False  # what was paid for is taken
    usd = 0.015
    ignores = ("steps", "guidance", "seed")
    sizes = ("1280x1280", "1568x1056", "1056x1568", "1472x1088", "1088x1472", "1728x960", "960x1728")

    def check(self, request: PictureRequest) -> None:
        if request.references:
            raise InputError("the hosted API takes no reference images; edit on vLLM-Omni, SGLang or this machine")
        if request.size not in self.sizes and not all(1024 <= side <= 2048 for side in (request.width, request.height)):
            raise InputError(
                f"the hosted API draws no {request.size}; use {', '.join(self.sizes)} or sides of 1024 to 2048"
            )

    def body(self, request: PictureRequest) -> dict:
        return {"model": "glm-image", "prompt": request.prompt, "size": request.size, "quality": "hd"}

    def fetch(self, wire: Wire, request: PictureRequest) -> bytes:
        answer = wire.post("/images/generations", self.body(request))
        return self.download(answer, answer.get("data"), wire)

    def download(self, answer: dict, pictures: object, wire: Wire) -> bytes:
        """The file at the first picture's address, or the reason why there is none."""
        match pictures:
            case [{"url": str(url)}, *_] if url:
                return wire.fetch(url)
        if answer.get("content_filter"):
            where = ", ".join(_filtered(answer["content_filter"]))
            raise ContentFilteredError(
                f"{wire.endpoint} withheld the picture: its content filter objects to the {where}"
            )
        raise BrokenAnswerError(f"{wire.endpoint} answered without a picture")


def _filtered(entries: object) -> list[str]:
    """Roles of a content_filter list in words."""
    words = {"assistant": "picture", "user": "prompt", "history": "earlier messages"}
    roles = [entry.get("role") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [words[role] for role in roles if role in words] or ["request"]


class ZaiAsync(Zai):
    """The same in two steps, so that a dropped connection loses no picture: a task, then its result."""

    name = "zai-async"

    def fetch(self, wire: Wire, request: PictureRequest) -> bytes:
        task = wire.post("/async/images/generations", self.body(request)).get("id")
        if not isinstance(task, str) or not re.fullmatch(r"[\w-]{1,128}", task, re.ASCII):
            raise BrokenAnswerError(f"{wire.endpoint} gave the task no usable number")
        failures = 0
        while True:
            wire.pause(POLL_SECONDS)
            try:
                answer = wire.get(f"/async-result/{task}")
                failures = 0
            except RemoteError as error:
                failures += 1
                if not error.retry or failures == POLL_FAILURES:
                    error.maybe_done = True  # the task runs on without us
                    raise
                continue
            if answer.get("task_status") == "SUCCESS":
                return self.download(answer, answer.get("image_result"), wire)
            if answer.get("task_status") != "PROCESSING":
                raise self.failed(answer, wire)

    def failed(self, answer: dict, wire: Wire) -> RemoteError:
        if answer.get("content_filter"):
            return ContentFilteredError(f"{wire.endpoint} withheld the picture: its content filter stopped the task")
        return RefusedError(f"{wire.endpoint} ended the task as {scrub(str(answer.get('task_status')), wire.key)}")


ENGINES = {engine.name: engine for engine in (VllmOmni, VllmOmniChat, SglangDiffusion, Zai, ZaiAsync)}
AUTO = "auto"
HOSTED = ("https://api.z.ai", "https://open.bigmodel.cn")


def known_engine(name: str, endpoint: Endpoint) -> Engine | None:
    """The engine chosen by name or told by a hosted address; None if the server has to be asked."""
    if name == AUTO:
        return Zai() if endpoint.origin in HOSTED else None
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is not known; use {AUTO}, {', '.join(ENGINES)}")
    return ENGINES[name]()


def detect(wire: Wire) -> Engine:
    """Tell the engine from GET /v1/models, which both kinds of server answer with their name."""
    try:
        answer = wire.get("/v1/models")
    except AccountError:
        raise
    except RefusedError as error:
        answer = _old_sglang(wire, error)
    match answer:
        case {"data": [{"owned_by": str(owner), "id": str(model)}, *_]} if owner in OWNERS:
            return OWNERS[owner](model)
        case {"model_path": str(model)}:
            return SglangDiffusion(model)
    raise RefusedError(f"{wire.endpoint} does not say which engine it is; choose it: {', '.join(ENGINES)}")


OWNERS = {"vllm": VllmOmni, "vllm-omni": VllmOmni, "sglang": SglangDiffusion}


def _old_sglang(wire: Wire, error: RefusedError) -> dict:
    """Releases of SGLang before /v1/models describe themselves under /models."""
    try:
        return wire.get("/models")
    except RefusedError:
        raise error from None
