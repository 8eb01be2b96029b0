"""A batch from prompt to pictures: what it costs is said before it is sent, what was ignored when it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import InputError
from .engines import AUTO
from .images import to_png
from .pool import Batch, Pool, Server, read_servers
from .request import PictureRequest, with_texts

MAX_USD = 0.10
MAX_COUNT = 64


@dataclass(frozen=True)
class Job:
    """`count` pictures of one prompt, the k-th with seed + k, from the servers whose addresses `server` lists.

    `texts` are to be drawn whether or not the prompt quotes them; `references` are edited or their subjects taken.
    `seconds` limits one attempt at one picture, `max_usd` what the batch may cost. None leaves a setting to the server.
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


@dataclass(frozen=True)
class Drawn:
    """Pictures in the order of their seeds, the names of the engines that drew, and what is to be known."""

    pictures: list[Image.Image]
    engines: list[str]
    report: str


def draw(
    job: Job,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Drawn:
    """Run a job. `tell` hears where it goes and what it costs before anything is sent."""
    pool = Pool(read_servers(job.server, job.engine), job.parallel, job.seconds)
    requests, added = make_requests(job)
    _check_cost(pool.servers, job)
    pool.connect(cancelled)
    tell(announcement(pool.servers, job))
    batch = pool.run(requests, cancelled, progress, job.keep_going)
    if not batch.pictures:
        raise next(iter(batch.errors.values()))
    engines = sorted({server.engine.name for server in pool.servers if server.drawn})
    return Drawn(batch.in_order(), engines, report(pool.servers, job, batch, added))


def make_requests(job: Job) -> tuple[list[PictureRequest], list[str]]:
    """One request a picture, and the texts that had to be added to the prompt."""
    if not 1 <= job.count <= MAX_COUNT:
        raise InputError(f"{job.count} pictures; use 1 to {MAX_COUNT}")
    prompt, added = with_texts(job.prompt, job.texts)
    references = tuple(to_png(picture) for picture in job.references)
    return [
        PictureRequest(
            prompt,
            job.width,
            job.height,
            None if job.seed is None else job.seed + k,
            job.steps,
            job.guidance,
            references,
        )
        for k in range(job.count)
    ], added


def price(servers: Sequence[Server], count: int) -> float:
    """Dollars that `count` pictures cost at most; 0 on own servers."""
    return count * max((server.engine.usd for server in servers if server.engine), default=0.0)


def _check_cost(servers: Sequence[Server], job: Job) -> None:
    usd = price(servers, job.count)
    if not usd <= job.max_usd + 1e-9:
        raise InputError(
            f"{job.count} pictures cost about ${usd:.3f}, more than the limit of ${job.max_usd:.3f}; "
            "ask for fewer or raise the limit"
        )


def announcement(servers: Sequence[Server], job: Job) -> str:
    usd = price(servers, job.count)
    cost = f"about ${usd:.3f}, the limit is ${job.max_usd:.3f}" if usd else "no charge, own servers"
    where = ", ".join(map(str, servers))
    return f"{job.count} of {job.width}x{job.height} at {where}: {cost}"


def report(servers: Sequence[Server], job: Job, batch: Batch, added: Sequence[str]) -> str:
    """One line a fact."""
    shares = ", ".join(f"{server}: {server.drawn}" for server in servers)
    lines = [f"{len(batch.pictures)} of {job.count} pictures in {batch.seconds:.1f} s; {shares}"]
    if batch.retries:
        lines.append(f"{batch.retries} failed attempts were repeated")
    for engine in {server.engine.name: server.engine for server in servers if server.engine}.values():
        without_effect = [name for name in engine.ignores if getattr(job, name) is not None]
        if without_effect:
            lines.append(f"{engine.name} takes no {', '.join(without_effect)}: ignored")
        if engine.note:
            lines.append(f"{engine.name}: {engine.note}")
    if added:
        lines.append(f"added to the prompt, which did not quote them: {', '.join(added)}")
    sizes = {f"{picture.width}x{picture.height}" for picture in batch.pictures.values()}
    if sizes != {f"{job.width}x{job.height}"}:
        lines.append(f"drawn in {', '.join(sorted(sizes))} instead of {job.width}x{job.height}")
    if usd := price(servers, len(batch.pictures)):
        lines.append(f"cost about ${usd:.3f}")
    lines += [f"picture {place + 1} failed: {error}" for place, error in sorted(batch.errors.items())]
    return "\n".join(lines)
