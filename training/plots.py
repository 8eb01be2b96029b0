"""Pictures of measured curves, drawn with matplotlib (`pip install -e ".[plots]"`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One frame: `curves` by name; those whose name ends in `dashed` are dashed. `ticks` label x values."""

    title: str
    below: str
    curves: dict[str, Points]
    logarithmic: str = ""  # the axes that are: "", "y" or "xy"
    ticks: dict[float, str] | None = None
    dashed: str | None = None


def write_panels(panels: Sequence[Panel], path: Path, columns: int = 2, heading: str = "") -> None:
    """Draw panels side by side, `columns` in a row, into one PNG."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 3.6 * rows), layout="constrained")
    frames = figure.subplots(rows, columns, squeeze=False).flat
    for frame, panel in zip(frames, panels):
        _draw(frame, panel)
    for frame in list(frames):
        frame.remove()
    figure.suptitle(heading, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw(frame, panel: Panel) -> None:
    for name, points in panel.curves.items():
        dashed = panel.dashed is not None and name.endswith(panel.dashed)
        few = "o" if len(points) < 20 else ""
        frame.plot(*zip(*points), "--" if dashed else "-", marker=few, markersize=4, label=name)
    frame.set(title=panel.title, xlabel=panel.below)
    frame.grid(alpha=0.3)
    for axis in panel.logarithmic:
        getattr(frame, f"set_{axis}scale")("log")
    if panel.ticks:
        frame.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        frame.minorticks_off()
    if panel.curves:
        frame.legend(loc="upper left" if panel.ticks else "best")
