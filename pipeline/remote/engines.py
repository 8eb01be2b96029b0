"""The protocols of serving engines: how to ask for an image and where it stands in the response.

Sources: the API sources of vLLM-Omni 0.30 and SGLang 0.5.23 (diffusion), and what both do when run. The hosted API is
in `hosted.py`, a planner in a server of its own in `planner.py`.
"""

import base64
import re

from ..errors import InputError
from .client import Client
from .errors import (
    AccountError,
    BrokenResponseError,
    ContentFilteredError,
    RefusedError,
    RemoteError,
    RepeatableFailureError,
    ServerFailedError,
    ServerTimeoutError,
)
from .images import ASKED_FORMAT, ReceivedImage, decode, image_bytes
from .request import ImageRequest
from .responses import redact

MODEL = "zai-org/GLM-Image"
GENERATIONS, EDITS, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"


class Engine:
    """One protocol. `model` is the name the server gives its model, where that is known.

    hosted: every image costs `usd` dollars, and a request that failed midway may have cost it. needs_key: nothing is
    sent without a key. exact: an image of another size than asked for is no answer. goes_on: what its client gave up is
    finished all the same. takes_plans: a request may bring its plan. ignores: settings of a request without effect.
    edit_note, plan_note: what the report says of such runs.
    """

    name = ""
    base = ""  # path before the protocol's own, where the user gives none
    health = "/health"
    hosted = needs_key = takes_plans = False
    exact = goes_on = True
    usd = 0.0
    ignores: tuple[str, ...] = ()
    edit_note = plan_note = ""

    def __init__(self, model: str | None = None):
        self.model = model

    def identify(self, client: Client) -> None:
        """Ask the server for what decides what it can do."""

    def check(self, request: ImageRequest) -> None:
        """Raise `InputError` for what this protocol or this server cannot do."""
        if request.plan and not self.takes_plans:
            raise InputError(f"{self.name} takes no plans; send it to vLLM-Omni, or draw it on this machine")

    def generate(self, client: Client, request: ImageRequest) -> ReceivedImage:
        try:
            return decode(self.fetch(client, request), request, client.endpoint, self.exact)
        except ServerFailedError as error:
            raise self.explain(error, request) from None

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        """Ask and wait for the image's file."""
        raise NotImplementedError

    def explain(self, error: ServerFailedError, request: ImageRequest) -> RemoteError:
        """The error to raise for a failure inside the engine."""
        return error

    def is_busy(self, client: Client) -> bool | None:
        """Whether the server works on an image; None where it does not say."""
        return None


class ImagesForm(Engine):
    """OpenAI's images form, which vLLM-Omni and SGLang share."""

    def fields(self, request: ImageRequest) -> dict:
        fields = {"prompt": request.prompt, "n": 1, "size": request.size, "response_format": "b64_json"}
        fields["output_format"] = ASKED_FORMAT.lower()  # SGLang sends a lossy JPEG otherwise
        return fields | request.settings()

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        return _image_in(client.post(GENERATIONS, self.fields(request)), client)


def _image_in(response: dict, client: Client) -> bytes:
    """data[0].b64_json, or the file at data[0].url"""
    match response:
        case {"data": [{"b64_json": str(text)}, *_]} if text:
            return image_bytes(text, client.endpoint)
        case {"data": [{"url": str(url)}, *_]} if url:
            return client.fetch(url)
    raise BrokenResponseError(f"{client.endpoint} answered without an image")


class VllmOmni(ImagesForm):
    """Text to image by the images form; the chat form where a reference or a plan comes along, which it alone takes.

    A model's name would have to match the server's, so none is sent.
    """

    name = "vllm-omni"
    takes_plans = True
    plan_limit = 4353  # `max_tokens` of its deploy file: a plan of 2048x2048
    edit_note = "the reference is shown to the planner only; the decoder never sees it"
    plan_note = "its planner makes a plan of its own first, which costs its time and is left aside"

    def check(self, request: ImageRequest) -> None:
        super().check(request)
        if len(request.references) > 1:
            raise InputError(
                f"vLLM-Omni edits from exactly one reference image, {len(request.references)} were given; "
                "leave one, or edit on this machine"
            )
        if request.plan_length() > self.plan_limit:
            raise InputError(
                f"{request.size} needs a plan of {request.plan_length()} tokens and vLLM-Omni stops at "
                f"{self.plan_limit}; use a smaller size, at most 2048x2048"
            )

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        return self.chat(client, request) if request.references or request.plan else super().fetch(client, request)

    def chat(self, client: Client, request: ImageRequest) -> bytes:
        body = {
            "messages": [{"role": "user", "content": _chat_content(request)}],
            "sampling_params_list": [_planner_settings(request), _decoder_settings(request)],
            "extra_body": {"height": request.height, "width": request.width},
        }
        return _inline(_chat_image(client.post(CHAT, body), client), client)

    def explain(self, error: ServerFailedError, request: ImageRequest) -> RemoteError:
        if PLAN_FAILURE.search(str(error)):
            return RepeatableFailureError(
                f"{error}: the plan of seed {request.seed} ended early or passed the server's max_tokens, as it does "
                "every time; use another seed or a smaller size"
            )
        return error


PLAN_FAILURE = re.compile(r"produced no valid inputs for diffusion|prior_token_ids seq_len")


class VllmOmniChat(VllmOmni):
    """vLLM-Omni's chat form for everything."""

    name = "vllm-omni-chat"

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        return self.chat(client, request)


def _planner_settings(request: ImageRequest) -> dict:
    """The planner's entry of `sampling_params_list`, which replaces the deploy file's whole.

    The engine cuts an edit's plan at the wrong place if it is longer than the grid, so its length is set exactly. One
    that is left aside for a given plan only has to be whole, whatever its tokens.
    """
    planner = request.planner
    if request.plan:
        return {"temperature": 0.0, "ignore_eos": True, "max_tokens": request.plan_length(), "detokenize": False}
    return {
        "temperature": planner.temperature,
        "top_p": planner.top_p,
        "top_k": planner.top_k,
        "stop_token_ids": [planner.end_token],
        "max_tokens": request.plan_length(),
        "seed": request.seed,
        "detokenize": False,
    }


def _decoder_settings(request: ImageRequest) -> dict:
    """The decoder's entry: tokens under `extra_args` go before those of the engine's planner."""
    if not request.plan:
        return request.settings()
    return request.settings() | {"extra_args": {"prior_token_ids": list(request.plan.prior_token_ids)}}


def _chat_content(request: ImageRequest) -> str | list[dict]:
    """References before the text; text alone is a plain string."""
    if not request.references:
        return request.prompt
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in request.references]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": request.prompt}]


def _chat_image(response: dict, client: Client) -> str:
    """choices[0].message.content[i].image_url.url"""
    match response:
        case {"choices": [{"finish_reason": "content_filter"}, *_]}:
            raise ContentFilteredError(f"{client.endpoint} withheld the image: its content filter stopped it")
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            raise BrokenResponseError(
                f"{client.endpoint} answered with words instead of an image: {redact(text, client.key)}"
            )
        case {"choices": [{"message": {"content": [*parts]}}, *_]}:
            for part in parts:
                match part:
                    case {"image_url": {"url": str(url)}}:
                        return url
    raise BrokenResponseError(f"{client.endpoint} answered without an image")


def _inline(url: str, client: Client) -> bytes:
    """The file in a data URL, or at the address of any other."""
    if not url.startswith("data:"):
        return client.fetch(url)
    kind, comma, text = url.partition(",")
    if not comma or not kind.startswith("data:image/") or not kind.endswith(";base64"):
        raise BrokenResponseError(
            f"{client.endpoint} sent a data URL of '{redact(kind[5:60], client.key)}', not of an image"
        )
    return image_bytes(text, client.endpoint)


class Sglang(ImagesForm):
    """SGLang's diffusion server: the images form, references as a form of files."""

    name = "sglang"
    broken_edits = ((0, 5, 22), (0, 5, 23))  # first and last release seen to fail on every edit

    def __init__(self, model: str | None = None):
        super().__init__(model or MODEL)
        self.version = ""

    def identify(self, client: Client) -> None:
        try:
            self.version = str(client.get("/server_info").get("version", ""))
        except AccountError:
            raise
        except RefusedError:
            self.version = ""  # a release that does not say

    def check(self, request: ImageRequest) -> None:
        super().check(request)
        first, last = self.broken_edits
        if request.references and first <= _numbers(self.version) <= last:
            raise InputError(f"SGLang {self.version} {EDIT_FAILURE}")

    def fields(self, request: ImageRequest) -> dict:
        return super().fields(request) | {"model": self.model}

    def fetch(self, client: Client, request: ImageRequest) -> bytes:
        if not request.references:
            return super().fetch(client, request)
        return _image_in(client.post_form(EDITS, self.fields(request), request.references), client)

    def explain(self, error: ServerFailedError, request: ImageRequest) -> RemoteError:
        if request.references:
            return RepeatableFailureError(f"{error}. SGLang {self.version or 'from 0.5.22'} {EDIT_FAILURE}")
        return error

    def is_busy(self, client: Client) -> bool | None:
        """Its scheduler answers /stats between two images, so no answer is one too."""
        try:
            client.get("/stats")
        except ServerTimeoutError:
            return True
        except RefusedError:
            return None
        return False


EDIT_FAILURE = (
    "fails on every edit: its transformers (5.19) gives the features of references one by one, and they are joined "
    "wrongly. Serve with 0.5.20 or older, or a release after 0.5.23 that mends it, or edit on vLLM-Omni or this machine"
)


def _numbers(version: str) -> tuple[int, ...]:
    """'0.5.23.post1' -> (0, 5, 23)"""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()
