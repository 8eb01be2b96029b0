"""Every pair of torch and torch_npu in docs/ascend.md, installed afresh: does it start, and what does doctor say?

`python tests/npu/pairs.py -o pairs` makes one environment after another in a temporary folder, with torch as pip's
index serves it and this package from a clone. Over the stand-in for CANN it imports torch, runs `glm-image doctor`, and
runs the bundled demo, on npu:0 where torch starts and else on the CPU. The result is `pairs.json` and the table in
`pairs.md`. It downloads some 3 GB for each torch and holds one environment of 8 GB at a time, so it is not part of CI.
x86-64 Linux with gcc.
`--pairs 2.12.0:2.12.0.post2,...` takes others than those of the table.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\d[\w.]*) \| (\d[\w.]*) \|", re.MULTILINE)
FAULT = re.compile(r"^fail\s+(.*(?:\n {8,}.*)*)", re.MULTILINE)
STAND_IN = {"FAKE_CANN_DEVICES": "1", "FAKE_CANN_SOC": "Ascend910B3", "TASK_QUEUE_ENABLE": "0", "OMP_NUM_THREADS": "1"}


def pairs_of_table() -> list[tuple[str, str]]:
    """(torch, torch_npu) of each row."""
    return ROW.findall((ROOT / "docs" / "ascend.md").read_text(encoding="utf-8"))


class Environment:
    """A virtual environment with one torch, beside a clone of this repository in which the stand-in is built."""

    def __init__(self, home: Path, torch: str):
        self.home, self.clone = home, home / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, self.clone], check=True)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        self.install(f"torch=={torch}")

    def install(self, *packages: str, check: bool = True) -> bool:
        pip = [self.home / "venv/bin/python", "-m", "pip", "install", "-q", "--no-compile"]
        return subprocess.run([*pip, *packages], check=check).returncode == 0

    def use(self, torch: str, torch_npu: str) -> bool:
        """Change torch_npu, and build the stand-in for it -> whether pip accepts the pair as it is.

        Older torch_npu ask for torch's CPU build by name, which PyPI does not have.
        """
        accepted = self.install(f"torch=={torch}", f"torch-npu=={torch_npu}", check=False)
        if not accepted:
            self.install("--no-deps", f"torch-npu=={torch_npu}")
        self.install("pyyaml", "setuptools", str(self.clone))
        shutil.rmtree(self.clone / "tests/fake_cann/build", ignore_errors=True)
        subprocess.run([self.home / "venv/bin/python", self.clone / "tests/fake_cann/build.py"], check=True)
        return accepted

    def run(self, *command: str) -> subprocess.CompletedProcess:
        build = self.clone / "tests/fake_cann/build"
        paths = {"LD_LIBRARY_PATH": build / "lib", "ASCEND_HOME_PATH": build, "ASCEND_OPP_PATH": build / "opp"}
        environment = {**os.environ, **STAND_IN, **{name: str(path) for name, path in paths.items()}}
        program, *arguments = command
        return subprocess.run(
            [self.home / "venv/bin" / program, *arguments],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )


def examine(environment: Environment, torch: str, torch_npu: str) -> dict:
    """What a first user of the pair meets."""
    accepted = environment.use(torch, torch_npu)
    started = environment.run("python", "-c", "import torch; print(torch.__version__, torch.version.cuda)")
    doctor = environment.run("glm-image", "doctor", "--device", "npu:0")
    row = {"torch": torch, "torch_npu": torch_npu, "pip accepts": accepted, "starts": started.returncode == 0}
    row["import"] = (started.stdout or started.stderr).strip().splitlines()[-1:] or [f"exit {started.returncode}"]
    row["doctor"] = {
        "exit code": doctor.returncode,
        "faults": [" ".join(f.split()) for f in FAULT.findall(doctor.stdout)],
    }
    row["device"], picture = "npu:0" if row["starts"] else "cpu", environment.home / "demo.png"
    picture.unlink(missing_ok=True)
    demo = environment.run("glm-image", "demo", "--device", row["device"], "-o", str(picture))
    row["demo"] = demo.returncode == 0 and picture.exists()
    row["demo error"] = "" if row["demo"] else demo.stderr[-2000:]
    explained = doctor.returncode == 1 and bool(row["doctor"]["faults"])
    row["good"] = row["demo"] and (row["starts"] or explained)
    return row


def table(rows: list[dict]) -> str:
    lines = ["| torch | torch_npu | pip | import | demo | doctor |", "|---|---|---|---|---|---|"]
    for row in rows:
        begins = "starts" if row["starts"] else "fails"
        demo = f"{'runs' if row['demo'] else 'fails'} on {row['device']}"
        said = "; ".join(row["doctor"]["faults"])[:160] or "nothing is wrong"
        pip = "accepts" if row["pip accepts"] else "needs --no-deps"
        lines.append(f"| {row['torch']} | {row['torch_npu']} | {pip} | {begins} | {demo} | {said} |")
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("pairs"))
    parser.add_argument("--pairs", help="TORCH:TORCH_NPU by commas (default: the table of docs/ascend.md)")
    args = parser.parse_args(arguments)
    wanted = [tuple(pair.split(":")) for pair in args.pairs.split(",")] if args.pairs else pairs_of_table()
    rows = []
    for torch, same_torch in groupby(wanted, key=lambda pair: pair[0]):
        with tempfile.TemporaryDirectory() as home:
            environment = Environment(Path(home), torch)
            for _, torch_npu in same_torch:
                rows.append(examine(environment, torch, torch_npu))
                args.output.with_suffix(".json").write_text(json.dumps(rows, indent=2))
                args.output.with_suffix(".md").write_text(table(rows))
                print(json.dumps(rows[-1]), flush=True)
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
