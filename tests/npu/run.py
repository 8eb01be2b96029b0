"""`make test-npu`: the tests of this folder with the real torch_npu package over the stand-in CANN runtime.

Without arguments it takes two pairs of torch and torch_npu: the oldest for what differs by version, then for everything
the newest that starts beside the build of torch that pip gets here. Where disk does not suffice for the oldest, a line
says so. Each has an environment in .venv-npu, made once; tests/fake_cann is built for it in seconds. Arguments are
pytest's, on the newest pair alone: `python tests/npu/run.py tests/npu -k graph -x`. `python tests/npu/run.py --python
FILE` runs a script instead. The environment variable NPU_PAIR chooses another pair, and NPU_PYTHON an interpreter that
has one already. x86-64 Linux with gcc, Python 3.10 to 3.13.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENVS = ROOT / ".venv-npu"
PAIRS = {  # torch, torch_npu, from old to new
    "2.7": ("torch==2.7.1", "torch_npu==2.7.1.post8"),
    "2.12": ("torch==2.12.0", "torch_npu==2.12.0.post2"),
    "2.13": ("torch==2.13.0", "torch_npu==2.13.0"),
    "2.14": ("torch==2.14.0", "torch_npu==2.14.0"),
}
OLDEST = "2.7"  # of which the table of operators and the kernels' tests are asked, which depend on the version
OLDEST_ROOM = 9 << 30  # bytes of disk that its environment takes while it is made: PyPI has it for CUDA alone
BY_VERSION = ("test_audit.py", "test_kernels.py", "test_graph.py")
STAMP = "installed.txt"  # in an environment that is whole
BESIDE_CUDA, BESIDE_CPU = "2.12", "2.13"  # the newest that start beside such a build of torch, and pass
OTHERS = [
    "numpy",
    "pyyaml",
    "pytest>=8",
    "safetensors",
    "tokenizers",
    "jinja2",
    "pillow",
    "tqdm",
    "huggingface-hub",
    "transformers==5.23.0",
    "diffusers==0.42.1",
    "accelerate",
    "peft==0.18.0",
    "comfy-kitchen==0.2.40",  # ComfyUI's kernels, whose backend for Ascend must not meet ours
]
SETTINGS = {
    "TASK_QUEUE_ENABLE": "0",  # operators run in the calling thread, where the stand-in can compute
    "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",  # an operator without a kernel is an error
    "FAKE_CANN_STRICT": "1",
    "FAKE_CANN_DEVICES": "2",
    "FAKE_CANN_SOC": "Ascend910B3",
    "OMP_NUM_THREADS": "1",  # the work is small; threads that wait for each other cost more
}


def make_environment(pair: str) -> str:
    """The interpreter of the pair's environment, with everything installed."""
    torch, torch_npu = PAIRS[pair]  # torch_npu pins its torch; its own requirements are not needed here
    venv = VENVS / pair
    python = venv / "bin" / "python"
    wanted = "\n".join([torch, torch_npu, *OTHERS])
    stamp = venv / STAMP
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, torch, *OTHERS], check=True)
        subprocess.run([*install, "--no-deps", torch_npu], check=True)
        stamp.write_text(wanted)
    return str(python)


def default_pair() -> str:
    """Newer torch_npu abort beside a CUDA build of torch, which is what PyPI has; other indexes have CPU builds."""
    ask = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
    ]
    done = subprocess.run([*ask, PAIRS[BESIDE_CPU][0]], capture_output=True, text=True)
    return BESIDE_CPU if done.returncode == 0 and '+cpu"' in done.stdout else BESIDE_CUDA


def chosen_pair() -> str:
    pair = os.environ.get("NPU_PAIR") or default_pair()
    if pair not in PAIRS:
        raise SystemExit(f"NPU_PAIR {pair!r} is not known; use {', '.join(PAIRS)}")
    return pair


def main(arguments: list[str]) -> int:
    if python := os.environ.get("NPU_PYTHON"):
        return run(python, arguments)
    failed = 0
    if not arguments and not os.environ.get("NPU_PAIR"):
        if (VENVS / OLDEST / STAMP).exists() or shutil.disk_usage(ROOT).free > OLDEST_ROOM:
            failed = run(make_environment(OLDEST), [str(HERE / name) for name in BY_VERSION])
        else:
            print(f"skipped: torch {OLDEST} needs {OLDEST_ROOM >> 30} GiB of disk, and less is free", flush=True)
    return run(make_environment(chosen_pair()), arguments) or failed


def run(python: str, arguments: list[str]) -> int:
    """pytest, or a script, by an interpreter that has a pair -> exit code."""
    build = subprocess.run(
        [python, ROOT / "tests" / "fake_cann" / "build.py"], check=True, stdout=subprocess.PIPE, text=True
    )
    home = Path(build.stdout.strip())
    paths = {"LD_LIBRARY_PATH": home / "lib", "ASCEND_HOME_PATH": home, "ASCEND_OPP_PATH": home / "opp"}
    environment = {**os.environ, **SETTINGS, **{name: str(path) for name, path in paths.items()}}
    command = [python, "-m", "pytest", "-q", "--import-mode=importlib", *(arguments or [str(HERE)])]
    if arguments[:1] == ["--python"]:
        command = [python, *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
