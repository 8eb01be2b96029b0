"""Bad inputs by the thousand: `python tests/robustness/run.py --count 20000 --seed 1`.

Every input must end right or in one of this package's errors: one line under 300 characters that can be encoded, within
5 s of processor time and 500 MB of memory above the idle process. Prints a table by surface; the last line is JSON.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if "comfyui_glm_image" not in sys.modules:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - loads this tree as the package

from comfyui_glm_image.pipeline.errors import DeviceError, GlmImageError
from comfyui_glm_image.tests.robustness.surfaces import SURFACES

SECONDS, MEGABYTES, LENGTH = 5.0, 500, 300
SHOWN = 10  # failures to print


@dataclass
class Tally:
    """What became of one surface's inputs."""

    ends: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    longest: int = 0
    failures: list[str] = field(default_factory=list)


def peak() -> int:
    """Most MB this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def fault_of(error: BaseException) -> str | None:
    """Why an exception is no refusal; None for a good one."""
    if not isinstance(error, GlmImageError):
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    message = str(error)
    if not message.strip() or (len(message) >= LENGTH and not isinstance(error, DeviceError)):
        return f"a message of {len(message)} characters: {message[:100]!r}"
    if "\n" in message and not isinstance(error, DeviceError):
        return f"a message of several lines: {message[:100]!r}"
    try:
        message.encode()
    except UnicodeEncodeError:
        return f"a message that cannot be encoded: {message[:100]!r}"
    return None


def attempt(surface: str, case, tally: Tally, number: int) -> None:
    """Run one input and count how it ended."""
    start, fault, end = time.process_time(), None, "taken"
    try:
        case()
    except (Exception, SystemExit) as error:  # any other kind of error is what is looked for
        end, fault = "refused", fault_of(error)
        tally.longest = max(tally.longest, len(str(error)) if fault is None else 0)
    seconds = time.process_time() - start
    tally.slowest = max(tally.slowest, seconds)
    if seconds > SECONDS:
        fault = f"took {seconds:.1f} s"
    tally.ends["failed" if fault else end] += 1
    if fault:
        tally.failures.append(f"{surface} input {number}: {fault}")


def run(count: int, seed: int, folder: Path, surfaces: dict = SURFACES) -> dict[str, Tally]:
    """`count` inputs, the same for the same seed, in turn over all surfaces."""
    folder.mkdir()
    makers = {name: make(folder / name) for name, make in surfaces.items()}
    tallies = {name: Tally() for name in makers}
    for number in range(count):
        name = list(makers)[number % len(makers)]
        case = makers[name](random.Random(f"{seed} {number}"))
        attempt(name, case, tallies[name], number)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    lines = ["| surface | inputs | taken | refused in one sentence | failed | slowest, s | longest message |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, tally in tallies.items():
        ends = tally.ends
        lines.append(
            f"| {name} | {sum(ends.values())} | {ends['taken']} | {ends['refused']} | {ends['failed']} "
            f"| {tally.slowest:.2f} | {tally.longest} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None, surfaces: dict = SURFACES) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", choices=surfaces)
    args = parser.parse_args(argv)
    surfaces = {name: make for name, make in surfaces.items() if args.surface in (None, name)}
    with tempfile.TemporaryDirectory() as folder:
        run(len(surfaces), -1, Path(folder, "first"), surfaces)  # what is imported late is no memory of an input
        idle = peak()
        tallies = run(args.count, args.seed, Path(folder, "counted"), surfaces)
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print(table(tallies))
    for failure in failures[:SHOWN]:
        print(failure)
    grown = peak() - idle
    slowest = max(tally.slowest for tally in tallies.values())
    print(json.dumps({"inputs": args.count, "failed": len(failures), "slowest": slowest, "grown_mb": grown}))
    return 1 if failures or grown > MEGABYTES else 0


if __name__ == "__main__":
    sys.exit(main())
