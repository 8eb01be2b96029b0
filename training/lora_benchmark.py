"""A step of a planner LoRA's training beside peft on transformers' model: seconds and peak memory, in one run.

    python -m comfyui_glm_image.training.lora_benchmark --side 1024

Both have the same random weights of the `third` configuration, the same adapter, tokens, AdamW and loss, and recompute
layers; their steps take turns. On a CPU, seconds are those of the processor, whatever else runs there. Memory is
counted in two ways. "step": the most that a step's tensors hold beside what stays. "weights": what stays on the device
from step to step, which is the weights of each side's module, as it is trained, its adapter and the adapter's moments.
Here both sides share one copy; each is counted as if it were alone.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from ..pipeline.benchmark import peers
from ..pipeline.benchmark.case import Case
from ..pipeline.benchmark.models import CONFIGURATIONS, RandomModels
from ..pipeline.benchmark.planner_stages import prompt_batch
from ..pipeline.benchmark.timing import peak_bytes, reset_peak
from ..pipeline.devices.device import resolve_device, synchronize
from ..pipeline.geometry import preview_grid, token_grid
from ..pipeline.loading.checkpoint import COMPONENTS
from ..pipeline.models.planner import Planner
from .lora.adapters import add_adapter, lora_config
from .lora.layers import streamline
from .lora.planner_loss import PlannerLoss, strip
from .lora.settings import LoraSettings


class Sequence(PlannerLoss):
    """Our loss on tokens made up once."""

    def __init__(self, planner, made: tuple, checkpointing: bool, keep: int):
        super().__init__(planner, None, checkpointing, keep)
        self.made = made

    def sequence(self, _items):
        return self.made


def sequence(config, side: int, prompt: int) -> tuple:
    """ids, positions, no mask, targets and the preview's share of them, as `PlannerLoss.sequence` gives them."""
    batch = prompt_batch(config, Case(side, side, 1, prompt))
    h, w = preview_grid(*token_grid(side, side))
    count, codes = batch.decode_positions.shape[2], config.vq_config.num_embeddings
    targets = torch.randint(codes, (1, count), generator=torch.Generator().manual_seed(0))
    positions = torch.cat((batch.positions, batch.decode_positions[..., :-1]), 2)
    return torch.cat((batch.ids, targets[:, :-1]), 1), positions, None, targets, h * w


def peer_loss(model, made: tuple, device: torch.device) -> Callable[[], torch.Tensor]:
    """The same loss by transformers: logits of the tokens that count, cross-entropy, both grids alike."""
    ids, positions, _, targets, preview = made
    ids, positions, targets = ids.to(device), positions.to(device), targets.to(device)

    def loss() -> torch.Tensor:
        keep = targets.shape[1]
        logits = model(input_ids=ids, position_ids=positions, logits_to_keep=keep, use_cache=False).logits
        each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(1, -1)
        return 0.5 * (each[:, :preview].mean() + each[:, preview:].mean())

    return loss


def peer_own_loss(model, made: tuple, device: torch.device) -> Callable[[], torch.Tensor]:
    """The loss that transformers' model computes itself, as its Trainer has it: labels in, the mean over tokens out."""
    ids, positions, _, targets, _ = made
    ids, positions = torch.cat((ids, targets[:, -1:]), 1), torch.cat((positions, positions[..., -1:]), 2)
    labels = torch.full_like(ids, -100)
    labels[:, -targets.shape[1] :] = targets
    ids, positions, labels = ids.to(device), positions.to(device), labels.to(device)

    def loss() -> torch.Tensor:
        out = model.base_model.model.model(input_ids=ids, position_ids=positions, use_cache=False)
        head = model.base_model.model
        logits = head.lm_head(out[0])
        return head.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])

    return loss


class Side:
    """A module in training by a loss: one step, and what it takes."""

    def __init__(self, module: torch.nn.Module, loss: Callable[[], torch.Tensor], device: torch.device):
        self.module, self.loss, self.device = module, loss, device
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4)

    def step(self) -> float:
        """One step of training -> its loss."""
        value = self.loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return value.item()

    @property
    def weights(self) -> int:
        """Bytes on the device that stay there from step to step, after the first of them."""
        moments = [state[name] for state in self.optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
        tensors = (*self.module.parameters(), *moments)
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == self.device.type)

    def memory(self) -> dict[str, int]:
        """Bytes, by a step that is counted."""
        weights, step = self.weights, peak_of(self.step, self.device)
        return {"weights": weights, "step": step, "whole": weights + step}


def as_trained(planner: Planner, settings: LoraSettings, device: torch.device) -> Planner:
    """Our planner as `train-lora` trains it."""
    if device.type != "cpu":
        planner.model.language_model.embed_tokens.to("cpu")
        planner.leave_on_host(device)
    strip(planner)
    add_adapter(planner, settings)
    streamline(planner)
    return planner


def with_peft(model, settings: LoraSettings, recompute: bool):
    """transformers' model as peft trains it."""
    from peft import get_peft_model

    model = get_peft_model(model, lora_config(settings))
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def most_layers(whole: Callable[[int], int], layers: int, limit: int) -> int:
    """The most of so many layers that can be kept so that `whole(kept)` is at most the limit; 0 where it never is."""
    least, most = 0, layers
    while least < most:
        kept = (least + most + 1) // 2
        least, most = (kept, most) if whole(kept) <= limit else (least, kept - 1)
    return least


def measure(sides: dict[str, Side], device: torch.device, repeats: int) -> dict[str, dict]:
    """Seconds (median) of each side's steps, which take turns, then bytes."""
    now = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            synchronize(device)
            began = now()
            side.step()
            synchronize(device)
            seconds[name].append(now() - began)
    return {
        name: {"seconds": statistics.median(taken), "fastest": min(taken), **sides[name].memory()}
        for name, taken in seconds.items()
    }


def peak_of(step: Callable[[], float], device: torch.device) -> int:
    """The most bytes of tensors that a step holds beside what was there before it."""
    if device.type == "cpu":
        return most_allocated(step)
    before = getattr(torch, device.type).memory_allocated(device)
    reset_peak(device)
    step()
    return peak_bytes(device) - before


def most_allocated(step: Callable[[], float]) -> int:
    """Counted by torch's profiler, since a process on a CPU keeps what it has freed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def layers_to_keep(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; use auto, or a whole number from 0")
    return text if text == "auto" else int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGURATIONS), default="third")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the square image")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", default="all")
    parser.add_argument(
        "--labels",
        action="store_true",
        help="the peer computes its own loss, over the logits of all tokens, as Trainer does",
    )
    parser.add_argument(
        "--keep-layers",
        type=layers_to_keep,
        default=0,
        metavar="N",
        help="as of train-lora; auto: as many as our whole memory stays within the peer's with",
    )
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def sides_of(args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Side], Sequence]:
    """Ours and the peer's, on the same weights, and our loss."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    settings = LoraSettings("planner", Path(), Path(), rank=args.rank, targets=args.targets)
    planner = RandomModels(CONFIGURATIONS[args.config], device, dict.fromkeys(COMPONENTS, dtype)).planner
    made = sequence(planner.config, args.side, args.prompt_tokens)
    peer = with_peft(peers.planner(planner.config, planner), settings, recompute=True)
    loss = Sequence(as_trained(planner, settings, device), made, True, 0)
    theirs = (peer_own_loss if args.labels else peer_loss)(peer, made, device)
    sides = {
        "ours": Side(planner, lambda: loss([()], device, None)["loss"], device),
        "peft on transformers": Side(peer, theirs, device),
    }
    return sides, loss


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    sides, loss = sides_of(args, device)
    ours, peer = sides.values()
    layers = len(ours.module.model.language_model.layers) - 1  # the last one is never recomputed
    loss.keep = 0 if args.keep_layers == "auto" else min(args.keep_layers, layers)
    losses = {name: side.step() for name, side in sides.items()}  # which warms up, too

    def whole(kept: int) -> int:
        loss.keep = kept
        return ours.memory()["whole"]

    if args.keep_layers == "auto":
        loss.keep = most_layers(whole, layers, peer.memory()["whole"])
    results = measure(sides, device, args.repeats)
    for name, found in results.items():
        sizes = ", ".join(f"{part} {found[part] / 2**20:.0f} MiB" for part in ("weights", "step", "whole"))
        print(f"{name:22} {found['seconds']:8.3f} s  {sizes}, loss {losses[name]:.4f}")
    first, second = results.values()
    ratios = {part: first[part] / second[part] for part in ("weights", "step", "whole")}
    ratios["speed"] = second["seconds"] / first["seconds"]
    print(
        f"{ratios['speed']:.2f} times as fast with {loss.keep} of {layers} layers kept, "
        f"at {ratios['whole']:.3f} of the peer's memory with weights, {ratios['step']:.2f} beside them"
    )
    about = {"arguments": vars(args), "torch": torch.__version__, "peers": peers.versions(), "kept": loss.keep}
    print(json.dumps({**about, "losses": losses, "results": results, "ratios": ratios}))


if __name__ == "__main__":
    main()
