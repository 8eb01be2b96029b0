"""The stages of a device check, each a generator of figures."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..benchmark.case import Bench
from ..benchmark.models import RandomModels
from ..benchmark.timing import measure_ceilings, time_call
from ..devices.device import available_devices
from ..devices.remembered import remember
from ..diagnostics.operator_audit import WAITS, Section, Watch
from ..diagnostics.self_tests import gelu_mode, graph_agrees, kernel_errors, recognises_out_of_memory
from ..diagnostics.tiny_models import PLANNED, planner_config, prompt_batch
from ..loading.checkpoint import PLANNER
from ..models.config import GenerationConfig
from ..models.planner import Planner
from ..planning.prefill import prefill
from ..planning.steps import new_step
from .check import DeviceCheck, Stage, figure
from .image import whole_image
from .results import Figure

MANY = 8  # plans at once


def kernels(check: DeviceCheck) -> Iterator[Figure]:
    """Each kernel against the CPU in float32, on this device and on every other one of its kind."""
    others = [d for d in available_devices() if d.type == check.device.type and d != check.device]
    for device in (check.device, *others):
        for name, error, limit in kernel_errors(device):
            note = f"{device}, accepted {limit:.0e}"
            yield Figure(name, error, "relative error", note=note, good=error <= limit)
    yield Figure("F.gelu", 1, f"({gelu_mode(check.device)} form)")


def limits(check: DeviceCheck) -> Iterator[Figure]:
    """What copying and a square matrix product reach; the shares of later stages are of these."""
    check.ceilings = measure_ceilings(check.device, check.bench.dtypes[PLANNER])
    yield Figure("copy", check.ceilings.copy / 1e9, "GB/s", note="read plus written")
    yield Figure("matrix product", check.ceilings.matrix / 1e12, "TFLOP/s")


def graph(check: DeviceCheck) -> Iterator[Figure]:
    """A small planner's tokens by captured graph and by eager steps."""
    reason, equal, replays = graph_agrees(check.device)
    if reason:
        wrong = check.device.type in ("cuda", "npu") and "not known" not in reason
        yield Figure("replays", 0, "", note=f"planning without a graph: {reason}", good=not wrong)
    else:
        yield Figure("replays", replays, "", note=f"tokens equal eager ones: {equal}", good=equal)


def launches(check: DeviceCheck) -> Iterator[Figure]:
    """Operators and waits of one eager token, on narrow layers, as many as the model has."""
    layers = check.bench.models.configs[PLANNER].text_config.num_hidden_layers
    dtype = check.bench.dtypes[PLANNER]
    planner = Planner(planner_config(layers)).to(check.device, dtype).requires_grad_(False)
    planner.fuse()
    prefix = prefill(planner, prompt_batch(), check.device)
    step, section = new_step(planner, prefix, GenerationConfig(0.9, 0.75), 1, rows=1), Section("token", hot=True)
    assert step.planned == PLANNED
    step.start(prefix)
    step.first(prefix.logits)
    with Watch(section):
        step.captured(step.cache.capacity)
    waits = sum(calls for (name, _), calls in section.calls.items() if name in WAITS)
    yield Figure(
        "operators of a token", sum(section.calls.values()), "", note=f"{layers} layers, one graph replays them"
    )
    yield Figure("waits of a token", waits, "", target="0", good=waits == 0)


def memory_errors(check: DeviceCheck) -> Iterator[Figure]:
    """Whether an impossible allocation is recognised as such, by which decoding in slices begins."""
    if check.device.type == "cpu":
        return
    known = recognises_out_of_memory(check.device)
    yield Figure("exhausted memory recognised", known, "", good=known)


def prompt(check: DeviceCheck) -> Iterator[Figure]:
    yield figure(check.measure("planner prefill"), "prefill of 128 tokens")


def decode(check: DeviceCheck) -> Iterator[Figure]:
    """Planning one image, and several at once."""
    one, many = (check.measure("planner decode", batch, rows=1) for batch in (1, MANY))
    yield figure(one, "decode, one token a pass", target="75 % of copying")
    gain = many.rate / one.rate
    yield figure(many, f"decode, batch {MANY}", target="6 times batch 1", note=f"{gain:.1f} times batch 1")
    several = check.measure("planner decode")
    note = f"{several.rate / one.rate:.2f} times one token a pass; how many drafts hold depends on the weights"
    yield figure(several, "decode, as suits the device", note=note)


def decode_int8(check: DeviceCheck) -> Iterator[Figure]:
    """The same with the planner's matrices in 8 bits, on random weights of the same sizes."""
    bench = check.bench
    forms = {PLANNER: "w8"}
    models = RandomModels(bench.models.configs, bench.device, bench.dtypes, forms)
    small = Bench(models, bench.device, bench.dtypes, forms)
    try:
        yield figure(check.measure("planner decode", bench=small), "decode, 8-bit weights")
    finally:
        small.release()


def decoder(check: DeviceCheck) -> Iterator[Figure]:
    """One pass; then both passes of guidance, one after the other and as one batch: the faster way is remembered."""
    yield figure(check.measure("decoder step"), "step, one pass", target="65 % of the matrix rate")
    apart = check.measure("decoder guided")
    yield figure(apart, "step with guidance, sequential")
    together = check.measure("decoder joined")
    check.batched_guidance = together.seconds < apart.seconds
    note = f"{apart.seconds / together.seconds:.2f} times sequential"
    if check.device.type != "cpu" and remember(check.device, "batched guidance", check.batched_guidance):
        note += f"; {'batched' if check.batched_guidance else 'sequential'} from now on"
    yield figure(together, "step with guidance, batched", note=note)


def vae(check: DeviceCheck) -> Iterator[Figure]:
    yield figure(check.measure("vae decode"), "decode")
    yield figure(check.measure("vae strips"), "decode in slices")


def image(check: DeviceCheck) -> Iterator[Figure]:
    """One whole image, phase by phase."""
    yield from whole_image(check)


def synchronisation(check: DeviceCheck) -> Iterator[Figure]:
    """What a call costs that does nothing: launch and wait."""
    x = torch.zeros(1, device=check.device)
    seconds = min(time_call(lambda: x.add_(1), check.device) for _ in range(50))
    yield replace(Figure("launch and wait", seconds * 1e6, "us"), note="one addition")


STAGES: dict[str, Stage] = {
    "kernels": kernels,
    "memory errors": memory_errors,
    "limits": limits,
    "launch": synchronisation,
    "graph": graph,
    "launches": launches,
    "prompt": prompt,
    "planner": decode,
    "planner, 8 bits": decode_int8,
    "decoder": decoder,
    "VAE": vae,
    "image": image,
}
