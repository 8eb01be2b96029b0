"""ComfyUI's samplers and schedulers measured on a flow model: `python tools/samplers.py` writes the table of docs.

Each makes 65,536 values of a normal distribution with mean 1 and deviation 0.5, of which the model knows the exact
velocity, in 30 steps; tests/comfyui/flow_samplers.py is what runs inside ComfyUI.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "comfyui.md"
MEAN, SPREAD = 1.0, 0.5
MEAN_OFF, SPREAD_OFF = 0.1, 0.15  # more than this is a miss
MARKS = "<!-- samplers: made by tools/samplers.py -->", "<!-- end of samplers -->"


def misses(mean: float, spread: float) -> bool:
    return abs(mean - MEAN) > MEAN_OFF or abs(spread - SPREAD) > SPREAD_OFF


def measure() -> dict:
    """What the experiment prints: {"samplers": {name: [mean, spread]}, "schedulers": the same, "warned": names}."""
    import comfyui  # beside this file

    install = comfyui.install()
    script = ROOT / "tests" / "comfyui" / "inside.py"
    command = [install.python, script, ROOT, "samplers", ROOT / "checkpoints" / "small"]
    done = subprocess.run(list(map(str, command)), cwd=install.app, capture_output=True, text=True, check=True)
    return {"version": install.version, **json.loads(done.stdout.splitlines()[-1])}


def table(found: dict) -> str:
    """Samplers and schedulers with equal figures share a row, the best first."""
    lines = [f"ComfyUI {found['version']}; true are mean {MEAN:.2f} and deviation {SPREAD:.2f}.", ""]
    lines += ["| sampler (on `simple`) or scheduler (under `euler`) | mean | deviation | |", "|---|---|---|---|"]
    for kind in ("samplers", "schedulers"):
        rows: dict[tuple[str, str], list[str]] = {}
        for name, (mean, spread) in found[kind].items():
            rows.setdefault((f"{mean:.2f}", f"{spread:.2f}"), []).append(name)
        for mean, spread in sorted(rows, key=lambda row: abs(float(row[0]) - MEAN) + abs(float(row[1]) - SPREAD)):
            verdict = "misses: said at the node" if misses(float(mean), float(spread)) else "works"
            names = ", ".join(f"`{name}`" for name in rows[mean, spread])
            lines.append(f"| {'scheduler ' if kind == 'schedulers' else ''}{names} | {mean} | {spread} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(measure())}\n{MARKS[1]}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
