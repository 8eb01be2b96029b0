"""A running ComfyUI and the few requests the tests make of it."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from comfyui_glm_image.tools.comfyui import Install, make_base

START_SECONDS = 180
RUN_SECONDS = 600
EMPTY = 32 << 20  # bytes of a device at most, when no model is on it


class PromptError(Exception):
    """What ComfyUI said about a prompt: `text`, and the id of the node it said it at (None: the whole graph)."""

    def __init__(self, text: str, node: str | None = None):
        super().__init__(f"node {node}: {text}")
        self.text = text
        self.node = node


class Server:
    """ComfyUI on a free loopback port with this pack in it; `log` is everything it printed.

    It computes on the CPU unless an `environment` brings another device. `arguments` are more of the command line's.
    """

    def __init__(
        self, install: Install, base: Path, environment: dict[str, str] | None = None, arguments: tuple[str, ...] = ()
    ):
        self.version = install.version
        self.base = make_base(base)
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.log_file = base / "server.log"
        port = int(self.url.rsplit(":", 1)[1])
        device = () if environment else ("--cpu",)
        device = (*device, *arguments)
        command = install.command(base, port, *device, "--preview-method", "latent2rgb", "--cache-classic")
        quiet = {"OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads would take the processor from the tests
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=base,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **quiet, **(environment or {})},
            )
        self._wait_until_up()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except urllib.error.URLError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI {self.version} did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str):
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read()

    def post(self, path: str, body: dict) -> bytes:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def add_model(self, name: str, folder: Path) -> str:
        """Offer a checkpoint folder to the loaders -> its name there."""
        link = self.base / "models" / "glm_image" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(folder, target_is_directory=True)
        return f"{name}/model_index.json"

    def options(self, node: str, widget: str) -> list[str]:
        """What a combo offers now."""
        declared = self.get(f"/object_info/{node}")[node]["input"]["required"][widget]
        return declared[1]["options"] if len(declared) > 1 and "options" in declared[1] else declared[0]

    def queue(self, prompt: dict, client: str = "tests") -> str:
        """Queue a graph in API form; returns its id. A graph that ComfyUI refuses is a `PromptError`."""
        try:
            return json.loads(self.post("/prompt", {"prompt": prompt, "client_id": client}))["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
        for node, found in answer.get("node_errors", {}).items():
            raise PromptError("; ".join(f"{e['message']}: {e['details']}" for e in found["errors"]), node)
        raise PromptError(answer["error"]["message"])

    def wait(self, prompt_id: str) -> dict:
        """Outputs by node id of a queued prompt once it is done; an error or an interruption is a `PromptError`."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended:\n{self.log[-3000:]}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return _outputs(entry)
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} is still running after {RUN_SECONDS} s")

    def run(self, prompt: dict) -> dict:
        return self.wait(self.queue(prompt))

    def unload(self) -> None:
        """Have ComfyUI unload its models, as its menu does, and wait until its device is empty."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            self.post("/free", {"unload_models": True})  # one is forgotten while ComfyUI tidies up after a graph
            if self.get("/system_stats")["devices"][0]["torch_vram_total"] < EMPTY:
                return
            time.sleep(0.1)
        raise TimeoutError(f"models are still loaded after {RUN_SECONDS} s")

    def files(self, outputs: dict, node: str, kind: str = "images") -> list[Path]:
        """Paths of what a save or preview node wrote."""
        return [self.base / item["type"] / item["subfolder"] / item["filename"] for item in outputs[node][kind]]


def _outputs(entry: dict) -> dict:
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            raise PromptError(data["exception_message"].strip(), data["node_id"])
        if event == "execution_interrupted":
            raise PromptError("interrupted", data["node_id"])
    return entry["outputs"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
