"""What training stages share: optimisers, the schedule, and a state that survives being stopped at any minute.

A stage trains for a number of minutes in all, counted over restarts. Its state is written every minute. On a CPU,
minutes in which other work had the processor are not counted, so that training can run at the lowest priority.
"""

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..pipeline.files import replacing

STATE = "state.safetensors"
LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained. `minutes` are those of all restarts together; `sizes` is read by `data.parse_sizes`."""

    minutes: float
    batch: int
    lr: float
    device: torch.device
    sizes: str = "2x4"
    regions: float = 0.5  # share of pictures with several words
    edits: float = 0.4  # share of steps on edits of references, of planner and decoder
    scenes: float = 0.4  # share of the other steps on scenes of 256 px, of planner and decoder
    muon_lr: float = 0.02
    seed: int = 0
    start: Path | None = None  # a checkpoint folder whose weights a new stage starts from


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: https://kellerjordan.github.io/posts/muon. For matrices inside blocks.

    Matrices of one shape are orthogonalised as one batch. float32 throughout: on CPUs bfloat16 is the slower type.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for parameters in shapes.values():
                self._step_shape(parameters, group)

    def _step_shape(self, parameters: list[torch.Tensor], group: dict) -> None:
        updates = []
        for p in parameters:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(momentum, group["momentum"]))
        rows, columns = updates[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for p, update in zip(parameters, orthogonal(torch.stack(updates))):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(m: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns) -> nearly orthogonal matrices of the same singular vectors, by five Newton-Schulz steps."""
    tall = m.shape[1] > m.shape[2]
    m = m.mT if tall else m
    m = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = m @ m.mT
        m = 3.4445 * m + (-4.7750 * gram + 2.0315 * gram @ gram) @ m
    return m.mT if tall else m


def optimisers(model: torch.nn.Module, blocks: str, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices whose name starts with one of `blocks`, AdamW for everything else."""
    named = list(model.named_parameters())
    inner = [p for n, p in named if n.startswith(blocks) and p.ndim == 2 and "norm" not in n]
    ids = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in ids]
    fused = recipe.device.type in ("cpu", "cuda")
    made = [torch.optim.AdamW(rest, recipe.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)]
    if inner:
        made.append(Muon(inner, recipe.muon_lr))
    return made


def tensors_of(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Flatten nested dicts and lists of tensors to one dict with dotted names."""
    if isinstance(state, torch.Tensor):
        return {prefix[:-1]: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    flat: dict[str, torch.Tensor] = {}
    for key, value in items:
        flat.update(tensors_of(value, f"{prefix}{key}."))
    return flat


def save_state(tensors: dict[str, torch.Tensor], folder: Path, meta: dict) -> None:
    """Write `state.safetensors`; the old one stays until the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(folder / STATE) as partial:
        save_file(stored, partial, metadata={"meta": json.dumps(meta)})


def read_meta(folder: Path) -> dict:
    """What was saved with the state, empty when there is none."""
    if not (folder / STATE).exists():
        return {}
    with safe_open(folder / STATE, "pt") as file:
        return json.loads(file.metadata()["meta"])


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / STATE)


def read_component(checkpoint: Path, component: str) -> dict[str, torch.Tensor]:
    """The float32 weights of one component of a checkpoint folder."""
    (file,) = (checkpoint / component).glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


class Stage:
    """One model in training: schedule by minutes of work, moving average, log, and restart.

    `model` holds everything that is trained, `ema` its moving average, which is what gets exported. The learning rate
    warms up, stays, and falls to zero over the last `cooldown` of `minutes`.
    """

    def __init__(self, folder: Path, model, opts, minutes: float, ema: float = 0.998, cooldown: float = 0.4):
        self.folder, self.model, self.opts = folder, model, opts
        self.minutes, self.decay, self.cooldown = minutes, ema, cooldown
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, list] = {}
        self.base = [[group["lr"] for group in opt.param_groups] for opt in opts]
        if (folder / STATE).exists():
            self._resume()
        self.waits = next(model.parameters()).device.type != "cpu"  # for the device, at no cost to the processor
        self.started = self._now()
        self.saved = time.monotonic()

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    @property
    def elapsed(self) -> float:
        """Seconds of work over all restarts."""
        wall, busy = (now - then for now, then in zip(self._now(), self.started))
        return self.seconds + (wall if self.waits else min(wall, busy))

    def _resume(self) -> None:
        meta, tensors = read_meta(self.folder), read_state(self.folder)
        self.step, self.seconds = meta["step"], meta["seconds"]
        part = {name: {} for name in ("model", "ema")}
        for name, tensor in tensors.items():
            head, _, tail = name.partition(".")
            if head in part:
                part[head][tail] = tensor
        self.model.load_state_dict(part["model"])
        self.ema.load_state_dict(part["ema"])
        for i, opt in enumerate(self.opts):
            state = opt.state_dict()
            state["state"] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"opt{i}."):
                    _, index, key = name.split(".")
                    state["state"].setdefault(int(index), {})[key] = tensor
            opt.load_state_dict(state)

    @property
    def progress(self) -> float:
        """Share of the stage's minutes that is spent."""
        return self.elapsed / 60 / self.minutes

    def running(self) -> bool:
        """Whether to take another step; writes the state every minute and when the time is up."""
        done = self.progress >= 1
        if done or time.monotonic() - self.saved > 60:
            self.save()
        return not done

    def update(self, loss: torch.Tensor, **figures: torch.Tensor) -> None:
        """Backward, one step of every optimiser, moving average, and a log line now and then."""
        warm, left = min(1.0, (self.step + 1) / 60), (1 - self.progress) / self.cooldown
        rate = warm * min(1.0, max(0.0, left))
        for opt, bases in zip(self.opts, self.base):
            for group, base in zip(opt.param_groups, bases):
                group["lr"] = base * rate
            opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for opt in self.opts:
            opt.step()
        self.step += 1
        self._average()
        for name, value in {"loss": loss, **figures}.items():
            self.sums.setdefault(name, []).append(value.detach())
        if self.step % LOG_EVERY == 0:
            self._log()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.decay, 1 - 1 / (self.step / 5 + 2))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def _log(self) -> None:
        line = {"step": self.step, "seconds": round(self.elapsed)}
        line.update({name: round(float(torch.stack(seen).mean()), 4) for name, seen in self.sums.items()})
        self.sums = {}
        self.log(line)

    def log(self, line: dict) -> None:
        """Append one JSON line to `log.jsonl` and show it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def save(self) -> None:
        self.seconds, self.started, self.saved = self.elapsed, self._now(), time.monotonic()
        state = {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
        state.update({f"opt{i}": opt.state_dict()["state"] for i, opt in enumerate(self.opts)})
        save_state(tensors_of(state), self.folder, {"step": self.step, "seconds": self.seconds})
