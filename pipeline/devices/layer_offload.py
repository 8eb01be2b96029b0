"""Layerwise offload, for a module whose weights do not fit: layers wait in host memory and are loaded one by one.

While a layer runs, the next one is copied on a side stream. As many layers as fit stay on the device for good. Hooks
do the work, so models know nothing of it. Every pass costs a copy of all waiting layers, and an offloaded
module cannot be captured into a graph.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

Slot = tuple[nn.Module, str]  # a module and the name of one of its own parameters


def offload_layers(
    module: nn.Module, device: torch.device, keep: int = 0, staying: Sequence[nn.Module] = ()
) -> nn.Module:
    """Spread a module on the CPU: everything but its repeated layers, and `keep` bytes of them, goes to `device`.

    Parts that are `staying` are left where they are.
    """
    waiting, left = [], {id(part) for home in staying for part in home.modules()}
    for layer in repeated_layers(module):
        if id(layer) in left:
            continue
        size = sum(tensor.nbytes for tensor in layer.parameters())
        if size > keep:
            waiting.append(layer)
        keep -= min(size, keep)
    inside = left | {id(part) for layer in waiting for part in layer.modules()}
    for part in module.modules():
        if id(part) not in inside:
            part._apply(lambda tensor: tensor.to(device), recurse=False)
    offloader = LayerOffloader(waiting, device)
    for i, layer in enumerate(waiting):
        layer.register_forward_pre_hook(lambda *_, i=i: offloader.load(i))
        layer.register_forward_hook(lambda *_, i=i: offloader.unload(i), always_call=True)
        for part in layer.modules():
            if part._parameters:
                part.register_forward_pre_hook(lambda part, *_, i=i: offloader.load_part(i, part))
                part.register_forward_hook(lambda part, *_, i=i: offloader.unload_part(i, part), always_call=True)
    return module


@contextmanager
def visiting(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Lend modules that live in host memory to a device; weights there are dropped afterwards, not copied."""
    home = {slot: getattr(*slot).detach() for module in modules for slot in _slots(module)}
    LayerOffloader._assign({slot: tensor.to(device) for slot, tensor in home.items()})
    try:
        yield
    finally:
        LayerOffloader._assign(home)


def repeated_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of every outermost list whose items are of one class, in order."""
    found = []
    for child in module.children():
        is_stack = isinstance(child, nn.ModuleList) and len({type(item) for item in child}) == 1
        found += list(child) if is_stack else repeated_layers(child)
    return found


def _slots(layer: nn.Module) -> Iterator[Slot]:
    for part in layer.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield part, name


class LayerOffloader:
    """Two layers are on the device at most: the one that runs, and the next on its way."""

    def __init__(self, layers: list[nn.Module], device: torch.device):
        self.device = device
        self.backend = getattr(torch, device.type) if device.type in ("npu", "cuda") else None
        self.side = self.backend.Stream(device) if self.backend else None
        self.waiting = [{slot: self._host(getattr(*slot)) for slot in _slots(layer)} for layer in layers]
        self.arriving: dict[int, dict[Slot, torch.Tensor]] = {}
        self.running: int | None = None
        for i in range(len(layers)):
            self.unload(i)

    def _host(self, parameter: torch.Tensor) -> torch.Tensor:
        """Only pinned memory is copied while the device works."""
        return parameter.detach().pin_memory() if self.backend else parameter.detach()

    def load(self, i: int) -> None:
        """Give layer `i` its weights on the device, and prefetch the next."""
        self._prefetch(i)
        arrived = self.arriving.pop(i)
        if self.backend:
            main = self.backend.current_stream(self.device)
            main.wait_stream(self.side)
            for tensor in arrived.values():
                tensor.record_stream(main)  # its memory came from the side stream
        self._assign(arrived)
        self.running = i
        self._prefetch((i + 1) % len(self.waiting))

    def unload(self, i: int) -> None:
        self._assign(self.waiting[i])
        self.running = None

    def load_part(self, i: int, part: nn.Module) -> None:
        """Load a part of layer `i` that is called by itself, as the decoder's modulations are."""
        if self.running != i:
            self._assign({slot: tensor.to(self.device) for slot, tensor in self._of(i, part)})

    def unload_part(self, i: int, part: nn.Module) -> None:
        if self.running != i:
            self._assign(dict(self._of(i, part)))

    def _of(self, i: int, part: nn.Module) -> list[tuple[Slot, torch.Tensor]]:
        return [(slot, tensor) for slot, tensor in self.waiting[i].items() if slot[0] is part]

    def _prefetch(self, i: int) -> None:
        if i not in self.arriving:
            with self.backend.stream(self.side) if self.backend else nullcontext():
                host = self.waiting[i].items()
                self.arriving[i] = {slot: tensor.to(self.device, non_blocking=True) for slot, tensor in host}

    @staticmethod
    def _assign(tensors: dict[Slot, torch.Tensor]) -> None:
        for (part, name), tensor in tensors.items():
            part._parameters[name] = nn.Parameter(tensor, requires_grad=False)
