"""Plans that cross a server: sampled there and drawn here, or made here and drawn there.

Shapes: B images, h w full grid, ph pw preview grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..plan import Plan
from ..remote.errors import CancelledError
from ..remote.planner import PlannedTokens, SglangPlanner, TokenRequest
from ..remote.pool import Batch, Pool
from ..remote.request import GivenPlan, PlannerSampling
from ..remote.server import read_servers
from .make_plan import PlannerSettings, PlanRequest, PreparedPlan


@dataclass(frozen=True)
class RemotePlan:
    """A plan from servers, and a report of who made it."""

    plan: Plan
    report: str


def plan_remotely(
    settings: PlannerSettings,
    request: PlanRequest,
    server: str,
    parallel: int = 4,
    seconds: float = 600.0,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RemotePlan:
    """Plan on the planner servers whose addresses `server` lists, each image a request of its own.

    `settings` are those of the checkpoint that is served; none of its weights is needed. `seconds` limits one attempt
    at one plan. Raises `InputError` for references, which these servers take no pixels of, and `RemoteError`.
    """
    if request.images:
        raise InputError("a planner server takes no reference images; leave them out, or plan on this machine")
    prepared = settings.prepare(request)
    pool = Pool(read_servers(server, SglangPlanner.name), parallel, seconds)
    requests = token_requests(prepared)
    pool.connect(cancelled, tell)
    tell(f"{request.rows} of {request.width}x{request.height} planned at {', '.join(map(str, pool.servers))}")
    try:
        batch = pool.run(requests, cancelled, progress)
    except CancelledError:
        tell("cancelled; the servers drop what they had begun")
        raise
    return RemotePlan(as_plan(prepared, batch.in_order()), _report(pool, batch))


def token_requests(prepared: PreparedPlan) -> list[TokenRequest]:
    """One request for each image, in the order of their seeds."""
    request, sampling = prepared.request, prepared.sampling
    planner = PlannerSampling(sampling.temperature, sampling.top_p, sampling.top_k)
    ids = [tuple(prompt.ids.tolist()) for prompt in prepared.encoded for _ in range(request.count)]
    grids, codebook = tuple(prepared.grids.values()), prepared.config.vq_config.num_embeddings
    return [TokenRequest(row, grids, codebook, seed, planner) for row, seed in zip(ids, request.seeds)]


def as_plan(prepared: PreparedPlan, planned: list[PlannedTokens]) -> Plan:
    """Tokens of every image, each grid after grid -> the plan."""
    tokens = torch.tensor([row.tokens for row in planned])
    sizes = [h * w for h, w in prepared.grids.values()]
    grids = dict(zip(prepared.grids, tokens.split(sizes, dim=1)))
    return Plan(
        grids["full"].contiguous(),
        prepared.grids["full"],
        prepared.config.vq_config.num_embeddings,
        prepared.request.row_prompts,
        prepared.request.seed,
        grids["preview"].contiguous(),
        prepared.grids["preview"],
    )


def given_plans(plan: Plan) -> list[GivenPlan]:
    """A plan's images as an engine takes them; their references it does not, so a plan with some is refused."""
    if plan.references:
        raise InputError(
            "the plan has reference images, which no engine's decoder takes with a plan; draw it on this machine"
        )
    return [
        GivenPlan(prompt, plan.width, plan.height, tuple(ids))
        for prompt, ids in zip(plan.prompts, plan.prior_token_ids.tolist())
    ]


def _report(pool: Pool, batch: Batch) -> str:
    """One line a fact."""
    shares = ", ".join(f"{server}: {server.completed}" for server in pool.servers)
    lines = [f"planned {len(batch.images)} in {batch.seconds:.1f} s; {shares}"]
    if batch.retries:
        lines.append(f"{batch.retries} failed attempts were repeated")
    for server in pool.servers:
        if server.completed and not server.engine.repeats:
            lines.append(
                f"{server} samples with a randomness of its own: the same seed gives another plan each time, unless it "
                "is started with --enable-deterministic-inference"
            )
    return "\n".join(lines)
