"""A planner in a server of its own: tokens of a prompt in, tokens of a plan out.

Sources: SGLang 0.5.23, `srt/entrypoints/http_server.py` and what its own decoder's server asks of its planner's
(`multimodal_gen/.../model_specific_stages/glm_image.py`).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import InputError
from ..text import shown
from .client import Client
from .engines import Engine
from .errors import AccountError, BrokenResponseError, RefusedError, RepeatableFailureError
from .request import PlannerSampling

GENERATE, MODEL_INFO, SERVER_INFO = "/generate", "/model_info", "/server_info"
ARCHITECTURE = "GlmImageForConditionalGeneration"
START = "sglang serve --model-path GLM-Image/vision_language_encoder --tokenizer-path GLM-Image/processor"
MAX_SAMPLING_SEED = 2**63 - 1  # the server keeps seeds as int64
BYTES_PER_TOKEN = 64  # digits of a token with what stands between them, several times over
RESPONSE_ROOM = 1 << 20

Grid = tuple[int, int]


@dataclass(frozen=True)
class TokenRequest:
    """A plan to sample: `input_ids` of the prompt, and `grids` (h, w) in the order of planning, the full one last.

    Tokens of the plan are below `codebook_size`.
    """

    product: ClassVar[str] = "plan"

    input_ids: tuple[int, ...] = field(repr=False)
    grids: tuple[Grid, ...]
    codebook_size: int
    seed: int
    planner: PlannerSampling

    def __post_init__(self):
        if not 0 <= self.seed <= MAX_SAMPLING_SEED:
            raise InputError(f"seed {shown(self.seed)} is out of range for a server; use 0 to 2^63 - 1")

    @property
    def planned(self) -> int:
        """Tokens of all grids."""
        return sum(h * w for h, w in self.grids)

    @property
    def response_limit(self) -> int:
        """Bytes an answer may have."""
        return RESPONSE_ROOM + BYTES_PER_TOKEN * (self.planned + len(self.input_ids))


@dataclass(frozen=True)
class PlannedTokens:
    """Every token of a plan, grid after grid, each known to be of the codebook."""

    tokens: tuple[int, ...] = field(repr=False)


class SglangPlanner(Engine):
    """SGLang's language server with GLM-Image's planner; a request that its client gave up is dropped.

    `repeats`: whether a seed gives the same plan again, which takes a server that was started for it.
    """

    name = "sglang-planner"
    goes_on = False

    def __init__(self):
        super().__init__()
        self.repeats = False

    def identify(self, client: Client) -> None:
        """Only a server of this planner is asked to plan; which model it is does not show in its answers."""
        served = _page(client, MODEL_INFO).get("architectures")
        if not isinstance(served, list) or ARCHITECTURE not in served:
            raise RefusedError(f"{client.endpoint} serves no planner of GLM-Image; start one with '{START}'")
        self.repeats = bool(_page(client, SERVER_INFO).get("enable_deterministic_inference"))

    def check(self, request: TokenRequest) -> None:
        """Every plan fits that the checkpoint at hand could make."""

    def generate(self, client: Client, request: TokenRequest) -> PlannedTokens:
        answer = client.post(GENERATE, body(request))
        tokens = answer.get("output_ids")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise BrokenResponseError(f"{client.endpoint} answered without the tokens of a plan (output_ids)")
        if len(tokens) != request.planned:
            raise BrokenResponseError(f"{client.endpoint} sent {len(tokens)} of {request.planned} tokens of the plan")
        wrong = next((place for place, token in enumerate(tokens) if not 0 <= token < request.codebook_size), None)
        if wrong is not None:
            kind = RepeatableFailureError if self.repeats else BrokenResponseError
            raise kind(
                f"{client.endpoint} sent token {tokens[wrong]} at place {wrong + 1} of the plan, where 0 to "
                f"{request.codebook_size - 1} are tokens of an image; use another seed, and on the server the "
                "checkpoint that is named here"
            )
        return PlannedTokens(tuple(tokens))


def body(request: TokenRequest) -> dict:
    """The grids go in the order of the processor's, the full one first; the settings of the checkpoint replace the
    server's own, which are a temperature of 1 and no top_p.

    The server counts every token that it samples, the plan's end among them, so it is told to go on past that.
    """
    planner = request.planner
    return {
        "input_ids": list(request.input_ids),
        "image_data": [{"image_grid_thw": [[1, h, w] for h, w in reversed(request.grids)]}],
        "sampling_params": {
            "temperature": planner.temperature,
            "top_p": planner.top_p,
            "top_k": planner.top_k or -1,
            "max_new_tokens": request.planned,
            "ignore_eos": True,
            "sampling_seed": request.seed,
        },
    }


def _page(client: Client, path: str) -> dict:
    """A page about the server; empty where it has none."""
    try:
        return client.get(path)
    except AccountError:
        raise
    except RefusedError:
        return {}
