"""What was measured, as a table."""

from .case import STEPS
from .result import Result
from .timing import Ceilings

MIB = 1 << 20
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def headline(about: dict) -> str:
    peers = "".join(f", {name} {version}" for name, version in about["peers"].items())
    return (
        f"{about['model']}; {about['device']}, {about['dtype']}, {about['threads']} threads, "
        f"torch {about['torch']}{peers}, {about['date']}"
    )


def ceilings(measured: Ceilings) -> str:
    copy, matrix = measured.copy / 1e9, measured.matrix / 1e9
    return f"ceilings: copy {copy:.1f} GB/s (read plus written), matrix product {matrix:.1f} GFLOP/s\n"


def header(peer: bool) -> str:
    columns = f"{'stage':18} {'size':>10} {'batch':>5} {'time':>10} {'±':>4} {'rate':>16} {'ceiling':>12} {'peak':>9}"
    return columns + (f" {'peer':>10} {'ratio':>7}" if peer else "")


def row(result: Result, peer: bool) -> str:
    peak = "-" if result.peak is None else f"{result.peak / MIB:.0f} MiB"
    line = (
        f"{result.stage:18} {result.size or '-':>10} {result.batch:5} {_time(result.seconds):>10} "
        f"{result.spread:4.0%} {_scaled(result.rate) + ' ' + result.unit + '/s':>16} "
        f"{result.share:5.0%} {result.bound:6} {peak:>9}"
    )
    if not peer:
        return line
    if result.ratio is None:
        return line + f" {'-':>10} {'-':>7}"
    return line + f" {_time(result.peer_seconds):>10} {result.ratio:6.2f}x"


def sentence(total: dict) -> str:
    parts = f"plan {_time(total['plan_seconds'])}, steps {_time(total['denoise_seconds'])}"
    return (
        f"whole image {total['size']}, batch {total['batch']}, {STEPS} steps with guidance, "
        f"added up from the stages: {_time(total['seconds'])} ({parts})"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _scaled(number: float) -> str:
    scale, letter = next(((s, u) for s, u in UNITS if number >= s), (1, ""))
    return f"{number / scale:.3g}{letter}"
