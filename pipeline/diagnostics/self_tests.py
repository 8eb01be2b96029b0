"""Small trials of a device, each a fraction of a second: kernels, graph capture, the form of GELU, memory errors."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..devices import kernels
from ..devices.capabilities import capabilities
from ..devices.memory import is_out_of_memory
from ..models.config import GenerationConfig
from ..models.planner import Planner
from ..planning.generate import decode
from ..planning.graphs import GraphRunner
from ..planning.prefill import prefill
from ..planning.steps import new_step
from .tiny_models import planner_config, prompt_batch

ROWS = 4  # of a pass of the planner
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def kernel_errors(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """(kernel, largest error relative to the largest value, what is accepted) in the device's own dtype."""
    dtype = capabilities(device).dtype
    draw = torch.Generator().manual_seed(0)
    for name, run, shapes in CASES:
        inputs = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
        expected = run(*(x.float() for x in inputs))
        got = run(*(x.to(device) for x in inputs)).float().cpu()
        yield name, float((got - expected).abs().max() / expected.abs().max()), LIMITS[dtype]


def _causal(q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return kernels.attention(q, k, v, mask[None, None])


def _one_token(q, k, v):
    seen = torch.arange(k.shape[2], device=q.device) < 20
    return kernels.attention(q, k, v, seen[None, None, None])


def _rope(x):
    angles = torch.linspace(0, 3, x.shape[-2] * x.shape[-1] // 2, device=x.device).view(x.shape[-2], -1).repeat(1, 2)
    return kernels.rope(x, angles.cos(), angles.sin())


def _eight_bits(x, scale):
    codes = torch.arange(-127, 128, device=x.device).to(torch.int8).repeat(64)[: 64 * x.shape[-1]].view(64, -1)
    return kernels.int8_linear(x, codes, scale)


HEADS = [(1, 4, 32, 64), (1, 2, 32, 64), (1, 2, 32, 64)]
CASES = [
    ("attention", kernels.attention, HEADS),
    ("attention, causal mask", _causal, HEADS),
    ("attention, one token", _one_token, [(1, 4, 1, 64), *HEADS[1:]]),
    ("rms_norm", lambda x, weight: kernels.rms_norm(x, weight, 1e-5), [(4, 64), (64,)]),
    ("rope", _rope, [(1, 2, 8, 64)]),
    ("swiglu", kernels.swiglu, [(4, 128)]),
    ("gelu", kernels.gelu, [(4, 64)]),
    ("gelu_tanh", kernels.gelu_tanh, [(4, 64)]),
    ("convolution", F.conv2d, [(1, 8, 16, 16), (8, 8, 3, 3)]),
    ("group norm", lambda x: F.group_norm(x, 4), [(1, 8, 16, 16)]),
    ("product by 8-bit weights", _eight_bits, [(4, 128), (64,)]),
    ("matrix product", torch.matmul, [(64, 128), (128, 64)]),
]


def gelu_mode(device: torch.device) -> str:
    """What F.gelu computes when asked for the exact form: "erf", or "tanh" as some NPU libraries do."""
    x = torch.linspace(-3, 3, 200)
    got = F.gelu(x.to(device)).cpu()
    errors = {"erf": (got - F.gelu(x)).abs().max(), "tanh": (got - F.gelu(x, approximate="tanh")).abs().max()}
    return min(errors, key=errors.get)


def graph_agrees(device: torch.device) -> tuple[str | None, bool, int]:
    """(why there is no graph, or None; whether its tokens equal eager ones; replays) of a small random planner."""
    torch.manual_seed(0)
    planner = Planner(planner_config()).to(device, capabilities(device).dtype).requires_grad_(False)
    planner.fuse()
    sampling, prefix = GenerationConfig(0.9, 0.75), prefill(planner, prompt_batch(), device)
    graphs = GraphRunner(planner, device)
    step = new_step(planner, prefix, sampling, 1, ROWS)
    captured = decode(planner, prefix, sampling, [0], rows=ROWS, step=step, run=graphs)["full"]
    eager = decode(planner, prefix, sampling, [0], rows=ROWS)["full"]
    replays, reason = graphs.replays, graphs.reason
    graphs.release()
    return reason, torch.equal(captured, eager), replays


def recognises_out_of_memory(device: torch.device) -> bool:
    try:
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    except RuntimeError as error:
        return is_out_of_memory(error)
    return False
