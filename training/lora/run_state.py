"""The state of a run on disk: written whole or not at all, so that a run goes on after any end it came to."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ...pipeline.errors import InputError
from ...pipeline.files import replacing, write_text
from ...pipeline.text import shown

STATE, LOG = "state.safetensors", "log.jsonl"


@dataclass(frozen=True)
class RunState:
    """`folder` of a run of `identity`: the settings and images that it was started with."""

    folder: Path
    identity: dict

    def step(self) -> int:
        """Steps that are done, 0 for a new run; refuses a state of other settings or images."""
        path = self.folder / STATE
        if not path.is_file():
            return 0
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads(file.metadata()["run"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no state of a training ({error}); move it away to start anew") from None
        changed = [name for name in self.identity if meta["identity"].get(name) != self.identity[name]]
        if changed:
            name = changed[0]
            was, now = (shown(where.get(name)) for where in (meta["identity"], self.identity))
            raise InputError(
                f"{self.folder} holds a training with {name} {was}, now {now}; use the same, or another folder"
            )
        return meta["step"]

    def save(self, step: int, parameters: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> None:
        """Keep everything that the steps to come depend on."""
        tensors = {f"adapter.{name}": parameter for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            tensors |= {f"optimiser.{name}.{key}": value for key, value in optimiser.state[parameter].items()}
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        meta = {"run": json.dumps({"step": step, "identity": self.identity})}
        with replacing(self.folder / STATE) as temporary:
            save_file(stored, temporary, metadata=meta)

    @torch.no_grad()
    def load(self, parameters: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> None:
        """Put the saved matrices and moments back."""
        stored = load_file(self.folder / STATE)
        for name, parameter in parameters.items():
            parameter.copy_(stored[f"adapter.{name}"])
            prefix = f"optimiser.{name}."
            moments = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            optimiser.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }


class LossLog:
    """`log.jsonl`: a line a step. Lines of steps that a run repeats after it was killed are taken back."""

    def __init__(self, folder: Path, step: int):
        self.path, self.waiting = folder / LOG, []
        kept = [line for line in read_log(folder) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, **figures: float | torch.Tensor) -> None:
        self.waiting.append((step, figures))

    def flush(self) -> list[dict]:
        """Write the lines that wait, for which the device is asked once -> those lines."""
        lines = [{"step": step, **_numbers(figures)} for step, figures in self.waiting]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.waiting = []
        return lines


def _numbers(figures: dict) -> dict:
    return {name: float(f"{float(value):.6g}") for name, value in figures.items()}


def read_log(folder: Path) -> list[dict]:
    """The lines of a log so far; a last one that a killed process left unfinished is passed over."""
    path = folder / LOG
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
