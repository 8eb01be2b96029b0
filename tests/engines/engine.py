"""A real serving engine as a process of its own, serving the bundled checkpoint on loopback."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from comfyui_glm_image.tests.engines.setup import HERE, HOME, ROOT, SGLANG, VLLM_OMNI

START_SECONDS = int(os.environ.get("ENGINE_START_SECONDS") or 1800)  # both warm up with images of their own choice
PR_SET_PDEATHSIG = 1
MODEL = HOME / "glm-image-small"  # SGLang tells the model by this name
SETTINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class Engine:
    """`name` is the engine's in the client; `worker` is how the process is called that computes the images."""

    name = worker = ""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = HOME / "run" / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log.txt"
        if not MODEL.exists():
            MODEL.symlink_to(ROOT / "checkpoints" / "small")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | SETTINGS | self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def wait(self) -> None:
        """Until it is ready to work; raises with the end of its log if it ends or takes too long."""
        end = time.monotonic() + START_SECONDS
        while self.health() != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(1)

    def health(self) -> int | None:
        """Status of the health page; None while nobody listens."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def kill_worker(self) -> None:
        """End the process that computes the images at once, as a lack of memory would."""
        found = [pid for pid, name in processes(os.getpgid(self.process.pid)) if self.worker in name]
        if not found:
            raise RuntimeError(f"{self.name} has no process called {self.worker}")
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it and every process it started."""
        for how, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class VllmOmni(Engine):
    name, worker = "vllm-omni", "DiffusionWorker"

    def command(self) -> list[str]:
        vllm = str(VLLM_OMNI.folder / "bin" / "vllm")
        options = ["--omni", "--host", "127.0.0.1", "--port", str(self.port)]
        options += ["--init-timeout", str(START_SECONDS), "--stage-init-timeout", str(START_SECONDS)]
        return [vllm, "serve", str(MODEL), *options, "--deploy-config", str(HERE / "vllm_omni_small.yaml")]

    def environment(self) -> dict[str, str]:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


class Sglang(Engine):
    name, worker = "sglang", "scheduler"

    def command(self) -> list[str]:
        sglang = str(SGLANG.folder / "bin" / "sglang")
        options = ["--host", "127.0.0.1", "--port", str(self.port)]
        options += ["--dit-precision", "fp32", "--vae-precision", "fp32"]  # see startup.py
        return [sglang, "serve", "--model-path", str(MODEL), *options]

    def environment(self) -> dict[str, str]:
        return {"TORCHDYNAMO_DISABLE": "1"}


class SglangPlanner(Engine):
    """SGLang's language server with the planner alone, in float32 so that its plans can be compared."""

    name, worker = "sglang-planner", "scheduler"

    def command(self) -> list[str]:
        sglang = str(SGLANG.folder / "bin" / "sglang")
        model = ["--model-path", str(MODEL / "vision_language_encoder"), "--tokenizer-path", str(MODEL / "processor")]
        options = ["--enable-multimodal", "--device", "cpu", "--dtype", "float32"]
        return [sglang, "serve", *model, *options, "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        return {"TORCHDYNAMO_DISABLE": "1"}


def end_with_parent() -> None:
    """Tests that are killed leave no engine behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def processes(group: int) -> list[tuple[int, str]]:
    """(id, command line) of every process in a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                found.append((int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")))
        except OSError:
            continue  # it ended meanwhile
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
