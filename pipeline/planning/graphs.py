"""The planner's decode step as a captured graph, for CUDA graphs and NPUGraph alike.

A step launches some hundreds of small kernels; launching costs more than computing. A graph launches them at once.
`GraphRunner` is what `generate.decode` calls for every token. The first token of each length is planned by the step
itself on a side stream, which is the warm-up that libraries need; then the step is captured, and later tokens are
replays. Where no graph can be had, every token is planned eagerly and `reason` says why.
"""

import logging
from dataclasses import dataclass

import torch

from ..devices.capabilities import capabilities
from ..models.planner import Planner
from .decode_step import DecodeStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphBackend:
    """Names in `torch.<device type>`. `whole_cache`: one graph reads all slots, not one graph for every bucket.

    On an NPU the attention kernel wants keys in one piece, which only the whole cache of a layer is.
    """

    graph: str
    whole_cache: bool


GRAPH_BACKENDS = {
    "cuda": GraphBackend("CUDAGraph", whole_cache=False),
    "npu": GraphBackend("NPUGraph", whole_cache=True),
}


def capture_blocker(planner: Planner, device: torch.device) -> str | None:
    """Why this planner's step cannot be captured on this device; None when it can."""
    if device.type not in GRAPH_BACKENDS:
        return f"{device.type} has no graphs"
    if not capabilities(device).graph:
        return f"graph capture is not known to work on {capabilities(device).family}"
    away = next((name for name, p in planner.named_parameters() if p.device != device), None)
    if away:
        return f"weights are not all on {device} (first: {away})"
    if any(_casts(layer) for layer in planner.modules() if isinstance(layer, torch.nn.Linear)):
        return "layers move or cast their weights at every call"
    return None


def _casts(layer: torch.nn.Linear) -> bool:
    """Whether a layer does more than multiply. ComfyUI's, whose weights are where they are used, says so itself."""
    return type(layer).__module__ != "torch.nn.modules.linear" and getattr(layer, "comfy_cast_weights", True)


class GraphRunner:
    """`run(step, k)` of `generate.decode`; owns the graphs of one step, and their memory until `release`."""

    def __init__(self, planner: Planner, device: torch.device):
        self.planner = planner
        self.device = device
        self.reason = capture_blocker(planner, device)
        self.replays = 0
        self._step: DecodeStep | None = None
        self._weights = 0
        self._graphs: dict[int, object] = {}
        self._pool = None
        if self.reason:
            logger.info("planning without a graph: %s", self.reason)

    def __call__(self, step: DecodeStep, k: int) -> None:
        """Plan token `k` of the step."""
        if self.reason:
            step.eager(k)
            return
        self._own(step)
        read = step.cache.capacity if GRAPH_BACKENDS[self.device.type].whole_cache else step.bucket(k)
        if read in self._graphs:
            self._graphs[read].replay()
            self.replays += 1
            return
        self._warm_up(step, read)
        self._try_capture(step, read)

    def release(self) -> None:
        """Free the graphs with their memory, and let go of the step."""
        self._step = None
        self._graphs.clear()
        self._pool = None

    def _own(self, step: DecodeStep) -> None:
        """Graphs read fixed addresses: another step, or weights that moved, need new ones."""
        weights = self.planner.lm_head.weight.data_ptr()
        if step is not self._step or weights != self._weights:
            self.release()
            self._step, self._weights = step, weights

    def _warm_up(self, step: DecodeStep, read: int) -> None:
        backend = getattr(torch, self.device.type)
        side, main = backend.Stream(self.device), backend.current_stream(self.device)
        side.wait_stream(main)
        with backend.stream(side):
            step.captured(read)
        main.wait_stream(side)

    def _try_capture(self, step: DecodeStep, read: int) -> None:
        backend = getattr(torch, self.device.type)
        graph = getattr(backend, GRAPH_BACKENDS[self.device.type].graph)()
        self._pool = self._pool or backend.graph_pool_handle()
        try:
            with backend.graph(graph, pool=self._pool):
                step.captured(read)
        except RuntimeError as error:
            self.release()
            self.reason = f"capture failed: {str(error).splitlines()[0]}"
            logger.warning("planning goes on without a graph: %s", self.reason)
            return
        self._graphs[read] = graph
