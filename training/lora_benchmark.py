"""A step of a planner LoRA's training beside peft on transformers' model: seconds and peak memory, in one run.

    python -m comfyui_glm_image.training.lora_benchmark --side 1024

Both have the same random weights of the `third` configuration, the same adapter, tokens, AdamW and loss, and recompute
layers; their steps take turns. On a CPU, seconds are those of the processor, whatever else runs there. The peak is
what a step's tensors hold beside the weights, of which both share one copy.
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
from .lora.adapters import add_adapter, lora_config
from .lora.layers import streamline
from .lora.planner_loss import PlannerLoss
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


def step_of(loss: Callable[[], torch.Tensor], parameters: list) -> Callable[[], float]:
    """One step of training -> its loss."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> float:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return value.item()

    return step


def with_peft(model, settings: LoraSettings, recompute: bool):
    """transformers' model as peft trains it."""
    from peft import get_peft_model

    model = get_peft_model(model, lora_config(settings))
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def measure(steps: dict[str, Callable[[], float]], device: torch.device, repeats: int) -> dict[str, dict]:
    """Seconds (median) of each, after a step that warms up, then peak bytes; the steps take turns."""
    now = time.process_time if device.type == "cpu" else time.perf_counter
    seconds, losses = {name: [] for name in steps}, {}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            synchronize(device)
            began = now()
            losses.setdefault(name, step())
            synchronize(device)
            if turn:
                seconds[name].append(now() - began)
    return {
        name: {
            "seconds": statistics.median(taken),
            "fastest": min(taken),
            "peak": peak_of(steps[name], device),
            "loss": losses[name],
        }
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


def main() -> None:
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
    parser.add_argument("--keep-layers", type=int, default=0, help="as of train-lora")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    settings = LoraSettings("planner", Path(), Path(), rank=args.rank, targets=args.targets)
    planner = RandomModels(CONFIGURATIONS[args.config], device, dict.fromkeys(COMPONENTS, dtype)).planner
    for layer in planner.model.language_model.layers:
        layer.self_attn.fused = None
    made = sequence(planner.config, args.side, args.prompt_tokens)
    peer = with_peft(peers.planner(planner.config, planner), settings, recompute=True)
    theirs = [p for p in peer.parameters() if p.requires_grad]
    ours = add_adapter(planner, settings)
    streamline(planner)
    loss = Sequence(planner, made, True, args.keep_layers)
    steps = {
        "ours": step_of(lambda: loss([()], device, None)["loss"], list(ours.values())),
        "peft on transformers": step_of((peer_own_loss if args.labels else peer_loss)(peer, made, device), theirs),
    }
    results = measure(steps, device, args.repeats)
    first, second = results.values()
    ratio = second["seconds"] / first["seconds"], second["peak"] / first["peak"]
    for name, found in results.items():
        print(f"{name:22} {found['seconds']:8.3f} s  peak {found['peak'] / 2**20:8.0f} MiB  loss {found['loss']:.4f}")
    print(f"{ratio[0]:.2f} times as fast at {1 / ratio[1]:.2f} of the memory")
    print(
        json.dumps({"arguments": vars(args), "torch": torch.__version__, "peers": peers.versions(), "results": results})
    )


if __name__ == "__main__":
    main()
