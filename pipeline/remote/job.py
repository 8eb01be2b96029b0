"""A batch from prompt to images: what it costs is said before it is sent, what was ignored when it is done."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..errors import InputError
from .errors import CancelledError
from .images import ASKED_FORMAT, to_png
from .limits import AUTO, MAX_COUNT, MAX_SEED, MAX_USD
from .pool import Batch, Pool
from .request import RELEASE_GUIDANCE, RELEASE_STEPS, GivenPlan, ImageRequest, PlannerSampling, with_texts
from .server import Server, read_servers


@dataclass(frozen=True)
class Job:
    """`count` images of one prompt, the k-th with seed + k, from the servers whose addresses `server` lists.

    `texts` are to be drawn whether or not the prompt quotes them; `references` are edited or their subjects taken.
    `seconds` limits one attempt at one image, `max_usd` what the batch may cost. A seed of None is a random one; steps
    and guidance of None are the release's, on every engine. `planner` is for checkpoints other than the release.
    `plans` are drawn one an image, or a single one `count` times; they bring size and, where `prompt` is empty, it too.
    """

    prompt: str
    server: str
    width: int = 1024
    height: int = 1024
    engine: str = AUTO
    count: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    references: Sequence[Image.Image] = ()
    texts: Sequence[str] = ()
    parallel: int = 4
    seconds: float = 600.0
    max_usd: float = MAX_USD
    keep_going: bool = False
    planner: PlannerSampling = PlannerSampling()
    plans: Sequence[GivenPlan] = ()


@dataclass(frozen=True)
class Generated:
    """Images in the order of their seeds, each with its seed and the format its file arrived in.

    `engines` names those that did the work, `report` is what is to be known.
    """

    images: list[Image.Image]
    seeds: list[int]
    formats: list[str]
    engines: list[str]
    report: str


def generate(
    job: Job,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generated:
    """Run a job. `tell` hears where it goes and what it costs before anything is sent."""
    job = _fitted_to_plans(job)
    pool = Pool(read_servers(job.server, job.engine), job.parallel, job.seconds)
    requests, added = make_requests(job)
    _check_cost(pool.servers, job)
    pool.connect(cancelled, tell)
    tell(announcement(pool.servers, job))
    try:
        batch = pool.run(requests, cancelled, progress, job.keep_going)
    except CancelledError:
        if busy := _occupied(pool.servers):
            tell(f"cancelled; {busy} finishes what it has begun; the next image waits for it")
        raise
    if not batch.images:
        raise next(iter(batch.errors.values()))
    received = batch.in_order()
    return Generated(
        [entry.image for entry in received],
        [requests[place].seed for place in sorted(batch.images)],
        [entry.format for entry in received],
        sorted({server.engine.name for server in pool.servers if server.completed}),
        report(pool.servers, job, batch, added),
    )


def make_requests(job: Job) -> tuple[list[ImageRequest], list[str]]:
    """One request an image, and the texts that had to be added to the prompt."""
    if not 1 <= job.count <= MAX_COUNT:
        raise InputError(f"{job.count} images; use 1 to {MAX_COUNT}")
    plans = list(job.plans) or [None] * job.count
    prompts = [with_texts(job.prompt or (plan.prompt if plan else ""), job.texts) for plan in plans]
    first = ImageRequest(
        prompts[0][0],
        job.width,
        job.height,
        random.randrange(MAX_SEED - MAX_COUNT) if job.seed is None else job.seed,
        RELEASE_STEPS if job.steps is None else job.steps,
        RELEASE_GUIDANCE if job.guidance is None else job.guidance,
        tuple(to_png(image) for image in job.references),
        job.planner,
    )
    requests = [
        replace(first, prompt=prompt, seed=first.seed + k, plan=plan)
        for k, ((prompt, _), plan) in enumerate(zip(prompts, plans))
    ]
    return requests, list(dict.fromkeys(text for _, added in prompts for text in added))


def _fitted_to_plans(job: Job) -> Job:
    """The job with its plans' size and a plan for each image."""
    if not job.plans:
        return job
    if job.count not in (1, len(job.plans)) and len(job.plans) > 1:
        raise InputError(f"{len(job.plans)} plans and {job.count} images; use 1, or as many images as plans")
    plans = list(job.plans) * (job.count if len(job.plans) == 1 else 1)
    return replace(job, width=plans[0].width, height=plans[0].height, count=len(plans), plans=plans)


def price(servers: Sequence[Server], count: int) -> float:
    """Dollars that `count` images cost at most; 0 on own servers."""
    return count * max((server.engine.usd for server in servers if server.engine), default=0.0)


def _check_cost(servers: Sequence[Server], job: Job) -> None:
    usd = price(servers, job.count)
    if not usd <= job.max_usd + 1e-9:
        raise InputError(
            f"{job.count} images cost about ${usd:.3f}, more than the limit of ${job.max_usd:.3f}; "
            "ask for fewer or raise the limit"
        )


def announcement(servers: Sequence[Server], job: Job) -> str:
    usd = price(servers, job.count)
    cost = f"about ${usd:.3f}, the limit is ${job.max_usd:.3f}" if usd else "no charge, own servers"
    where = ", ".join(map(str, servers))
    busy = _occupied(servers)
    wait = (
        f"; {busy} still works on an image that was given up, nothing is sent there before it is done" if busy else ""
    )
    return f"{job.count} of {job.width}x{job.height} at {where}: {cost}{wait}"


def _occupied(servers: Sequence[Server]) -> str:
    return ", ".join(str(server) for server in servers if server.occupied)


def report(servers: Sequence[Server], job: Job, batch: Batch, added: Sequence[str]) -> str:
    """One line a fact."""
    shares = ", ".join(f"{server}: {server.completed}" for server in servers)
    lines = [f"{len(batch.images)} of {job.count} images in {batch.seconds:.1f} s; {shares}"]
    if batch.retries:
        lines.append(f"{batch.retries} failed attempts were repeated")
    for engine in {server.engine.name: server.engine for server in servers if server.engine}.values():
        without_effect = [name for name in engine.ignores if getattr(job, name) is not None]
        if without_effect:
            lines.append(f"{engine.name} takes no {', '.join(without_effect)}: ignored")
        if job.references and engine.edit_note:
            lines.append(f"{engine.name}: {engine.edit_note}")
        if job.plans and engine.plan_note:
            lines.append(f"{engine.name}: {engine.plan_note}")
    lines += [f"{server} was left out: {server.unfit}" for server in servers if server.unfit]
    if added:
        lines.append(f"added to the prompt, which did not quote them: {', '.join(added)}")
    lines += _what_came(job, batch)
    if usd := price(servers, len(batch.images)):
        lines.append(f"cost about ${usd:.3f}")
    lines += [f"image {place + 1} failed: {error}" for place, error in sorted(batch.errors.items())]
    return "\n".join(lines)


def _what_came(job: Job, batch: Batch) -> list[str]:
    """Sizes and formats that are not those asked for."""
    lines = []
    sizes = {f"{received.image.width}x{received.image.height}" for received in batch.images.values()}
    if sizes != {f"{job.width}x{job.height}"}:
        lines.append(f"came in {', '.join(sorted(sizes))} instead of {job.width}x{job.height}")
    formats = Counter(received.format for received in batch.images.values())
    del formats[ASKED_FORMAT]
    lines += [f"{count} came as {name}, compressed by the server, not as PNG" for name, count in formats.items()]
    return lines
