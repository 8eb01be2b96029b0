"""What is measured: a case, a stage of it as one call, and the models that it runs on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ..geometry import token_grid
from ..loading.checkpoint import DECODER, GLYPH, PLANNER, VAE
from ..loading.memory_needs import NOTHING
from ..models.config import GenerationConfig
from . import peers
from .models import RandomModels
from .timing import Call

SAMPLING = GenerationConfig(temperature=0.9, top_p=0.75, top_k=0)
SAMPLINGS = {"release": SAMPLING, "top_p 1": replace(SAMPLING, top_p=1.0), "greedy": replace(SAMPLING, temperature=0.0)}
GLYPH_BYTES = 48  # of the text to draw, its end included
STEPS = 50
GUIDANCE = 1.5
META = torch.device("meta")


@dataclass(frozen=True)
class Case:
    """Pixels, images at once, tokens of the prompt, how many tokens are planned at most (None: the whole plan), and
    how many go through the planner together (None: as suits the device).
    """

    height: int = 1024
    width: int = 1024
    batch: int = 1
    prompt: int = 128
    tokens: int | None = None
    rows: int | None = None

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def patch_grid(self) -> tuple[int, int]:
        h, w = token_grid(self.height, self.width)
        return 2 * h, 2 * w


@dataclass(frozen=True)
class Stage:
    """`amount` units are made by one call, for which at least `flops` are computed and `nbytes` read.

    `run` is the call that is timed; `prepare` makes what it takes, once. `peer` makes the peer's call.
    """

    unit: str
    amount: int
    flops: int
    nbytes: int
    run: Callable
    prepare: Callable[[], object] | None = None
    peer: Callable[[], Call] | None = None

    def call(self) -> Call:
        """Prepare, then give the call that is timed."""
        if self.prepare is None:
            return self.run
        prepared = self.prepare()
        return lambda: self.run(prepared)


class Bench:
    """The models, their twins without memory, and peers with the same weights, made when first asked for."""

    def __init__(
        self, models, device: torch.device, dtypes: Mapping[str, torch.dtype], forms: Mapping[str, str] = NOTHING
    ):
        self.models, self.device, self.dtypes = models, device, dtypes
        self.meta = RandomModels(models.configs, META, dtypes, forms)
        self._peers: dict[str, torch.nn.Module] = {}

    def peer(self, component: str) -> torch.nn.Module:
        """transformers' or diffusers' model of a component."""
        if component not in self._peers:
            make, ours = {
                PLANNER: (peers.planner, lambda: self.models.planner),
                GLYPH: (peers.glyph_encoder, lambda: self.models.glyph_encoder),
                DECODER: (peers.transformer, lambda: self.models.transformer),
                VAE: (peers.vae, lambda: self.models.vae),
            }[component]
            self._peers[component] = make(self.models.configs[component], ours())
        return self._peers[component]

    def release(self) -> None:
        """Free all components and peers."""
        self._peers.clear()
        self.models.release()

    def random(self, component: str, *shape: int) -> torch.Tensor:
        """Normal numbers on the device in the component's dtype, the same on every device."""
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return numbers.to(self.device, self.dtypes[component])
