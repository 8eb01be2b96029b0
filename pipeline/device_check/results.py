"""What a check found, as data and as Markdown."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch


@dataclass(frozen=True)
class Figure:
    """One number. `share` is of the device's own limit named by `bound`; `good` is False for a wrong result."""

    name: str
    value: float
    unit: str
    share: float | None = None
    bound: str = ""
    target: str = ""
    note: str = ""
    good: bool = True


@dataclass
class StageReport:
    """A stage's figures, and the error that ended it early."""

    name: str
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.error is None and all(figure.good for figure in self.figures)


def collect(name: str, figures: Iterator[Figure]) -> StageReport:
    """A stage's figures up to its end or its error."""
    report, start = StageReport(name), time.perf_counter()
    try:
        with torch.no_grad():
            report.figures.extend(figures)
    except Exception as error:  # whatever goes wrong belongs in the report
        lines = str(error).strip().splitlines()
        report.error = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    report.seconds = time.perf_counter() - start
    return report


@dataclass(frozen=True)
class DeviceReport:
    """All stages, and what they belong to."""

    about: dict[str, str]
    stages: list[StageReport]
    title: str = "GLM-Image device check"

    @property
    def failed(self) -> list[str]:
        return [stage.name for stage in self.stages if not stage.good]

    def as_json(self) -> dict:
        return {"about": self.about, "failed": self.failed, "stages": [asdict(stage) for stage in self.stages]}


def markdown(report: DeviceReport) -> str:
    """A report that can be pasted into an issue."""
    lines = [f"### {report.title}", ""]
    lines += [f"- {name}: {value}" for name, value in report.about.items()]
    lines += ["", "| stage | figure | value | share of limit | target | note |", "|---|---|---|---|---|---|"]
    for stage in report.stages:
        lines += [_row(stage.name, figure) for figure in stage.figures]
        if stage.error:
            lines.append(f"| {stage.name} | **failed** | | | | {_cell(stage.error)} |")
    verdict = f"Failed: {', '.join(report.failed)}" if report.failed else "Every stage passed"
    return "\n".join([*lines, "", f"{verdict}. {sum(stage.seconds for stage in report.stages):.0f} s in all.", ""])


def _row(stage: str, figure: Figure) -> str:
    share = "" if figure.share is None else f"{figure.share:.0%} {figure.bound}"
    note = figure.note if figure.good else f"**wrong** {figure.note}"
    cells = (stage, figure.name, f"{number(figure.value)} {figure.unit}".strip(), share, figure.target, note)
    return "| " + " | ".join(map(_cell, cells)) + " |"


def number(value: float) -> str:
    """Three digits, or all of a whole number."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:300]
