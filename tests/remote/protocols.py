"""What each engine lets a client send, and what it makes of it; a request that the engine would refuse is refused.

vLLM-Omni as run in 0.30.0 and SGLang as run in 0.5.23, the hosted API as docs.z.ai describes it.
"""

import base64
import email.parser
import email.policy
import io
import json
import random
import re
from dataclasses import dataclass

from PIL import Image

KEY = "sk-contract-0123456789abcdef"
MODEL = "zai-org/GLM-Image"
PATHS = {
    "vllm-omni": ("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"),
    "sglang": ("/v1/images/generations", "/v1/images/edits"),
    "sglang-planner": ("/generate",),
    "zai": ("/api/paas/v4/images/generations", "/api/paas/v4/async/images/generations"),
}
DEPLOYED_SEED = 42  # of vLLM-Omni's deploy file and of SGLang's sampling defaults
DEFAULT_STEPS = {"vllm-omni": 50, "sglang": 30}
PLAN_LIMIT = 4353  # `max_tokens` of vLLM-Omni's deploy file
END_TOKEN, TOP_K = 16385, 16512  # of the release


class Refusal(Exception):
    """An answer other than 200: status, JSON body or plain text, and headers."""

    def __init__(self, status: int, body: dict | str, headers: dict | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


@dataclass(frozen=True)
class Effect:
    """What an engine draws for a request: the settings that reached planner and decoder, and the files it sends.

    `prior_token_ids`: tokens that the decoder was given in place of the planner's.
    """

    width: int
    height: int
    plan_seed: int | None
    seed: int | None
    steps: int
    guidance: float
    count: int = 1
    format: str = "PNG"
    prior_token_ids: tuple[int, ...] = ()


def openai_error(status: int, message: str, **more) -> Refusal:
    return Refusal(
        status, {"error": {"message": message, "type": "Bad Request", "param": None, "code": status, **more}}
    )


def plan_tokens(width: int, height: int, edit: bool) -> int:
    """Tokens of a whole plan with its end token, as vLLM-Omni counts them."""
    h, w = height // 32, width // 32
    preview = max(1, int((h / w) ** 0.5 * 16)) * max(1, int((w / h) ** 0.5 * 16))
    return h * w + 1 + (0 if edit else preview)


def plan_failure() -> Refusal:
    """What a plan that ended early or did not fit comes to."""
    return openai_error(500, "Stage-0 produced no valid inputs for diffusion stage-1", type="InternalServerError")


def unprocessable(field: str, message: str) -> Refusal:
    return Refusal(422, {"detail": [{"loc": ["body", field], "msg": message, "type": "value_error"}]})


def check_fields(fields: dict, kinds: dict) -> None:
    for name, value in fields.items():
        if name not in kinds or not isinstance(value, kinds[name]):
            raise unprocessable(name, f"{name}: unexpected field or type")


SETTINGS = {"num_inference_steps": int, "guidance_scale": (int, float), "seed": int}
PLANNER = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "stop_token_ids": list,
    "max_tokens": int,
    "seed": int,
    "detokenize": bool,
    "ignore_eos": bool,
}


def chat(headers, body: bytes):
    if headers["Content-Type"] != "application/json":
        raise unprocessable("", "not JSON")
    fields = json.loads(body)
    known = {"messages": list, "extra_body": dict, "seed": int, "model": str, "sampling_params_list": list}
    check_fields(fields, known)
    check_fields(fields["extra_body"], SETTINGS | {"height": int, "width": int})
    if "seed" in fields and "seed" in fields["extra_body"]:
        raise openai_error(400, 'Diffusion request parameters were provided more than once: "seed"')
    for entry, kinds in zip(fields.get("sampling_params_list", []), (PLANNER, SETTINGS | {"extra_args": dict})):
        check_fields(entry, kinds)
    (message,) = fields["messages"]
    if message["role"] != "user":
        raise unprocessable("messages", "role")
    if isinstance(message["content"], str):
        return fields, []
    *images, text = message["content"]
    if text["type"] != "text" or not images:
        raise unprocessable("messages", "the text comes last")
    references = [data_url(part["image_url"]["url"]) for part in images if part["type"] == "image_url"]
    if len(references) > 1:
        raise openai_error(500, "At most 1 image(s) may be provided in one prompt. (parameter=image)")
    return fields, references


def data_url(url: str) -> Image.Image:
    head, data = url.split(",")
    if head != "data:image/png;base64":
        raise unprocessable("image_url", "not a data URL")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",))


IMAGES = {"prompt": str, "model": str, "n": int, "size": str, "response_format": str, "output_format": str}


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
    fields, images = {}, []
    for part in form.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if name == "image":
            images.append(Image.open(io.BytesIO(data), formats=("PNG",)))
        else:
            fields[name] = data.decode()
    if not images:
        raise Refusal(422, {"detail": "Field 'image' or 'url' is required"})
    check_fields(fields, dict.fromkeys(IMAGES | SETTINGS, str))
    check_images(fields)
    return fields, images


def check_images(fields: dict) -> None:
    if not fields.get("prompt"):
        raise unprocessable("prompt", "field required")
    if not re.fullmatch(r"\d+x\d+", fields.get("size", "1024x1024")):
        raise Refusal(400, {"detail": f"Invalid size format: '{fields['size']}'. Expected format: 'WIDTHxHEIGHT'"})
    if fields.get("response_format", "b64_json") != "b64_json" or not 1 <= int(fields.get("n", 1)) <= 10:
        raise unprocessable("response_format", "not supported")


def vllm_omni(path: str, fields: dict, references: list) -> Effect:
    """The images form reaches both stages whole, and no reference; the chat form wants an entry for each stage."""
    width, height = size_of(fields)
    if "model" in fields and fields["model"] != MODEL:
        raise openai_error(
            400, f"Model mismatch: request specifies '{fields['model']}' but server is running '{MODEL}'."
        )
    if path == "/v1/images/edits":
        if len(references) > 1:
            raise openai_error(400, "Received multiple input images. Only a single image is supported by this model.")
        raise openai_error(400, "multi_modal_data['img2img'] is empty but multi_modal_uuids['img2img'] is missing.")
    if path == "/v1/chat/completions":
        return vllm_omni_chat(fields, width, height, bool(references))
    if plan_tokens(width, height, False) > PLAN_LIMIT:
        raise plan_failure()
    seed = fields.get("seed", random.getrandbits(32))
    file_format = fields.get("output_format", "png").upper()
    return Effect(width, height, seed, seed, *steps_and_guidance("vllm-omni", fields), format=file_format)


def vllm_omni_chat(fields: dict, width: int, height: int, edit: bool) -> Effect:
    entries = fields.get("sampling_params_list", [])
    planner = {"top_k": TOP_K, "stop_token_ids": [END_TOKEN], "max_tokens": PLAN_LIMIT, "seed": fields.get("seed")}
    if entries:
        planner = entries[0]  # whole: what it leaves out is no longer the deploy file's
    needed, given = plan_tokens(width, height, edit), planner.get("max_tokens", 16)
    if given < needed:
        raise plan_failure()
    endless = planner.get("ignore_eos", False)
    stops = planner.get("stop_token_ids") == [END_TOKEN] and planner.get("top_k") == TOP_K
    if not (stops or endless) or (edit and given > needed):
        return Effect(width, height, None, None, 0, 0.0)  # an image of the wrong tokens
    decoder = {"seed": DEPLOYED_SEED, "num_inference_steps": fields["extra_body"].get("num_inference_steps", 50)}
    if len(entries) > 1:
        decoder = entries[1]
    prior = tuple(decoder.get("extra_args", {}).get("prior_token_ids", ()))
    if prior and len(prior) != (height // 16) * (width // 16):
        raise openai_error(500, f"prior_token_ids seq_len ({len(prior)}) doesn't match dimensions ({height}x{width})")
    seeds = planner.get("seed"), decoder.get("seed")
    return Effect(width, height, *seeds, *steps_and_guidance("vllm-omni", decoder), prior_token_ids=prior)


def sglang(path: str, fields: dict, references: list, version: tuple[int, ...]) -> Effect:
    """JPEG unless told otherwise; every edit fails from 0.5.22 on, without a reason."""
    if references and version >= (0, 5, 22):
        raise Refusal(500, "Internal Server Error")
    width, height = size_of(fields)
    seed = int(fields.get("seed", DEPLOYED_SEED))
    file_format = fields.get("output_format", "jpeg").upper()
    settings = steps_and_guidance("sglang", fields)
    return Effect(width, height, seed, seed, *settings, count=int(fields.get("n", 1)), format=file_format)


SAMPLING = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "max_new_tokens": int,
    "ignore_eos": bool,
    "sampling_seed": int,
}


def plan(headers, body: bytes):
    """A prompt's tokens, and the grids in the processor's order, without pixels."""
    fields = json.loads(body)
    check_fields(fields, {"input_ids": list, "image_data": list, "sampling_params": dict})
    check_fields(fields["sampling_params"], SAMPLING)
    if not all(isinstance(token, int) for token in fields["input_ids"]) or len(fields["image_data"]) != 1:
        raise Refusal(400, {"error": {"message": "The input_ids are not a list of integers."}})
    return fields, []


def planned_tokens(fields: dict, codebook: int, repeats: bool) -> list[int]:
    """Tokens that tell the seed, which a server counts only if it was started to repeat itself."""
    sampling = fields["sampling_params"]
    seed = sampling["sampling_seed"] if repeats else random.getrandbits(16)
    return [(seed + place) % codebook for place in range(sampling["max_new_tokens"])]


def steps_and_guidance(engine: str, fields: dict) -> tuple[int, float]:
    steps = int(fields.get("num_inference_steps", DEFAULT_STEPS[engine]))
    return steps, float(fields.get("guidance_scale", 1.5))


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
