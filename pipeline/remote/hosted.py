"""The hosted API of z.ai and open.bigmodel.cn, from docs.z.ai: Generate Image, its asynchronous form, errors."""

import re

from ..errors import InputError
from .client import Client
from .engines import Engine
from .errors import BrokenResponseError, ContentFilteredError, RefusedError, RemoteError
from .request import ImageRequest
from .responses import redact

POLL_SECONDS = 2.0
POLL_FAILURES = 5  # in a row
ORIGINS = ("https://api.z.ai", "https://open.bigmodel.cn")


class Zai(Engine):
    """z.ai and open.bigmodel.cn: text to image in set sizes; the server chooses steps, guidance and seed."""

    name = "zai"
    base = "/api/paas/v4"
    health = ""
    hosted = needs_key = True
    exact = False  # what was paid for is taken
    goes_on = False  # nobody waits for its turn
    usd = 0.015
    ignores = ("steps", "guidance", "seed")
    sizes = ("1280x1280", "1568x1056", "1056x1568", "1472x1088", "1088x1472", "1728x960", "960x1728")

    def check(self, request: ImageRequest) -> None:
        super().check(request)
        if request.references:
            raise InputError("the hosted API takes no reference images; edit on vLLM-Omni, SGLang or this machine")
        if request.size not in self.sizes and not all(1024 <= side <= 2048 for side in (request.width, request.height)):
            raise InputError(
                f"the hosted API draws no {request.size}; use {', '.join(self.sizes)} or sides of 1024 to 2048"
            )

    def body(self, request: ImageRequest) -> dict:
        return {"model": "glm-image", "prompt": request.prompt, "size": request.size, "quality": "hd"}

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        response = client.post("/images/generations", self.body(request))
        return self.download(response, response.get("data"), client)

    def download(self, response: dict, images: object, client: Client) -> bytes:
        """The file at the first image's address, or the reason why there is none."""
        match images:
            case [{"url": str(url)}, *_] if url:
                return client.fetch(url)
        if response.get("content_filter"):
            where = ", ".join(_filtered(response["content_filter"]))
            raise ContentFilteredError(
                f"{client.endpoint} withheld the image: its content filter objects to the {where}"
            )
        raise BrokenResponseError(f"{client.endpoint} answered without an image")


def _filtered(entries: object) -> list[str]:
    """Roles of a content_filter list in words."""
    words = {"assistant": "image", "user": "prompt", "history": "earlier messages"}
    roles = [entry.get("role") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [words[role] for role in roles if role in words] or ["request"]


class ZaiAsync(Zai):
    """The same in two steps, so that a dropped connection loses no image: a task, then its result."""

    name = "zai-async"

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        task = client.post("/async/images/generations", self.body(request)).get("id")
        if not isinstance(task, str) or not re.fullmatch(r"[\w-]{1,128}", task, re.ASCII):
            raise BrokenResponseError(f"{client.endpoint} gave the task no usable number")
        failures = 0
        while True:
            client.pause(POLL_SECONDS)
            try:
                response = client.get(f"/async-result/{task}")
                failures = 0
            except RemoteError as error:
                failures += 1
                if not error.retry or failures == POLL_FAILURES:
                    error.maybe_done = True  # the task runs on without us
                    raise
                continue
            if response.get("task_status") == "SUCCESS":
                return self.download(response, response.get("image_result"), client)
            if response.get("task_status") != "PROCESSING":
                raise self.failed(response, client)

    def failed(self, response: dict, client: Client) -> RemoteError:
        if response.get("content_filter"):
            return ContentFilteredError(f"{client.endpoint} withheld the image: its content filter stopped the task")
        return RefusedError(
            f"{client.endpoint} ended the task as {redact(str(response.get('task_status')), client.key)}"
        )
