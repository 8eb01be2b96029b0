"""What training and growth looked like, as pictures: the logs of the stages, and the report of `glm-image bench`."""

import json
from collections.abc import Callable
from pathlib import Path

from ..pipeline.errors import InputError
from .plots import Panel, Points, write_panels

# panel -> figures of the stage that its first word names, and the axes that are logarithmic
STAGES = {
    "vae": (("psnr",), ""),
    "vision": (("tokens",), ""),
    "planner": (("full", "preview", "counting"), "y"),
    "planner plans": (("plans1", "plans2", "plans3", "plans4", "edited", "scenes"), ""),
    "decoder": (("flow", "edit flow"), "y"),
    "decoder words": (
        ("routing", "words", "edit routing", "edited words", "scene words", "texts of several words"),
        "",
    ),
}
PEERS = {"planner decode": "transformers", "decoder step": "diffusers", "vae decode": "diffusers"}


def write_curves(runs: Path, out: Path) -> None:
    """`runs/STAGE/log.jsonl` of every stage that has one -> one PNG, figures over minutes."""
    panels = []
    for name, (figures, logarithmic) in STAGES.items():
        log = runs / name.split()[0] / "log.jsonl"
        if log.exists():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            curves = {figure: points_of(lines, figure) for figure in figures}
            panels.append(Panel(name, "minutes", {k: v for k, v in curves.items() if v}, logarithmic))
    if not panels:
        raise InputError(f"{runs} holds no log of any stage; train one first")
    write_panels(panels, out)


def points_of(lines: list[dict], figure: str) -> list[tuple[float, float]]:
    """(minutes, value) of one figure; a line without a time belongs to the one before it."""
    points, minutes = [], 0.0
    for line in lines:
        minutes = line.get("seconds", 60 * minutes) / 60
        if figure in line:
            points.append((minutes, line[figure]))
    return points


def write_growth(report: Path, out: Path) -> None:
    """The output of `glm-image bench --growth --peer` -> one PNG: fastest calls, over tokens and over pixels."""
    try:
        content = json.loads(report.read_text(encoding="utf-8").splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise InputError(f"{report} does not end in the JSON line of `glm-image bench --growth`: {error}") from None
    write_panels(growth_panels(content), out, heading=_setting(content))


def growth_panels(report: dict) -> list[Panel]:
    """The planner against tokens, decoder and VAE against pixels."""
    rows = report.get("results", [])
    planned = [row for row in rows if row["stage"] == "planner decode"]
    drawn = [row for row in rows if row["stage"] in ("decoder step", "vae decode")]
    if len({row["amount"] for row in planned}) < 2 or len({row["size"] for row in drawn}) < 2:
        raise InputError("the report holds no growth; make it with `glm-image bench --growth --peer`")
    tokens = {row["amount"]: f"{row['amount'] + 1}" for row in planned}  # the first token comes with the prompt
    sizes = {_pixels(row): row["size"] for row in drawn}
    over_tokens, over_pixels = _curves(planned, lambda row: row["amount"]), _curves(drawn, _pixels)
    return [
        Panel("seconds against tokens", "tokens of a plan", over_tokens, "xy", tokens, "transformers"),
        Panel("seconds against pixels", "pixels of the image", over_pixels, "xy", sizes, "diffusers"),
    ]


def _pixels(row: dict) -> int:
    width, height = map(int, row["size"].split("x"))
    return width * height


def _curves(rows: list[dict], x: Callable[[dict], float]) -> dict[str, Points]:
    """Ours and, where it was measured, the peer's, of every stage."""
    curves: dict[str, Points] = {}
    for row in rows:
        for name, key in (("ours", "fastest"), (PEERS[row["stage"]], "peer_fastest")):
            if row[key] is not None:
                curves.setdefault(f"{row['stage']}, {name}", []).append((x(row), row[key]))
    return {name: sorted(points) for name, points in curves.items()}


def _setting(report: dict) -> str:
    """What was measured, where and with what."""
    peers = "".join(f", {name} {version}" for name, version in report["peers"].items())
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    setting = f"{report['device']}, {threads}, {report['dtype']}, torch {report['torch']}{peers}, {report['date']}"
    return f"{report['model']}; {setting}; fastest of a few calls"
