"""`make test-npu`: the tests of this folder with the real torch_npu package over the stand-in CANN runtime.

Makes .venv-npu at the root of the repository (once), builds tests/fake_cann (seconds), and runs pytest. Arguments are
pytest's: `python tests/npu/run.py -k graph -x`. `python tests/npu/run.py --python FILE` runs a script instead. With the
environment variable NPU_PYTHON set to an interpreter that has torch 2.13 and torch_npu, that one is used. x86-64 Linux
with gcc, Python 3.10 to 3.13.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-npu"
TORCH = "torch==2.13.0"
TORCH_NPU = "torch_npu==2.13.0"  # pins its torch; its own requirements are not needed here
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
]
SETTINGS = {
    "TASK_QUEUE_ENABLE": "0",  # operators run in the calling thread, where the stand-in can compute
    "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",  # an operator without a kernel is an error
    "FAKE_CANN_STRICT": "1",
    "FAKE_CANN_DEVICES": "2",
    "FAKE_CANN_SOC": "Ascend910B3",
    "OMP_NUM_THREADS": "1",  # the work is small; threads that wait for each other cost more
}


def make_environment() -> str:
    """The interpreter of .venv-npu, with everything installed."""
    python = VENV / "bin" / "python"
    wanted = "\n".join([TORCH, TORCH_NPU, *OTHERS])
    stamp = VENV / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, TORCH, *OTHERS], check=True)
        subprocess.run([*install, "--no-deps", TORCH_NPU], check=True)
        stamp.write_text(wanted)
    return str(python)


def main(arguments: list[str]) -> int:
    python = os.environ.get("NPU_PYTHON") or make_environment()
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
