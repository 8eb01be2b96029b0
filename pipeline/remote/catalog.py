"""The engines by name, and which one a server is."""

from ..errors import InputError
from .addresses import Endpoint
from .client import Client
from .engines import Engine, Sglang, VllmOmni, VllmOmniChat
from .errors import RefusedError
from .hosted import ORIGINS, Zai, ZaiAsync
from .limits import AUTO
from .planner import SglangPlanner

ENGINES = {engine.name: engine for engine in (VllmOmni, VllmOmniChat, Sglang, Zai, ZaiAsync)}
PLANNERS = {SglangPlanner.name: SglangPlanner}  # for plans alone
OWNERS = {"vllm": VllmOmni, "vllm-omni": VllmOmni, "sglang": Sglang}  # as /v1/models names them


def known_engine(name: str, endpoint: Endpoint) -> Engine | None:
    """The engine chosen by name or told by a hosted address; None if the server has to be asked."""
    if name == AUTO:
        return Zai() if endpoint.origin in ORIGINS else None
    if name not in ENGINES | PLANNERS:
        raise InputError(f"engine {name!r} is not known; use {AUTO}, {', '.join(ENGINES)}")
    return (ENGINES | PLANNERS)[name]()


def identify(client: Client, engine: Engine | None) -> Engine:
    """`engine`, or the one that GET /v1/models tells, with what its server says of itself."""
    engine = engine or _detect(client)
    engine.identify(client)
    return engine


def _detect(client: Client) -> Engine:
    match client.get("/v1/models"):
        case {"data": [{"owned_by": str(owner), "id": str(model)}, *_]} if owner in OWNERS:
            return OWNERS[owner](model)
    raise RefusedError(f"{client.endpoint} does not say which engine it is; choose it: {', '.join(ENGINES)}")
