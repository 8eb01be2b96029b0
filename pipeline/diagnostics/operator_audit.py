"""Every operator that the model runs, and how torch_npu would run it.

Runs each part of a small random model of the release's architecture and watches PyTorch's dispatcher. On a CPU the
NPU's own kernels run through reference operators, so that what is listed is what an NPU gets.
`npu_ops.tsv` says how torch_npu runs each operator; tools/npu_ops.py made it from torch_npu's dispatcher.
A finding is an operator without an NPU kernel, float64, a complex number, a tensor of more than 8 dimensions, a
floating-point attention mask, or a wait for the device in a loop that runs once a token or once a step.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..devices import kernels
from . import npu_reference_ops
from .tiny_models import parts

TABLE = Path(__file__).with_name("npu_ops.tsv")
MAX_DIMENSIONS = 8
FORBIDDEN = (torch.float64, torch.complex32, torch.complex64, torch.complex128)
ATTENTION = "aten::scaled_dot_product_attention"  # an operator of its own on an NPU, many on a CPU
WAITS = {  # operators whose result the host needs
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave.Tensor",
    "aten::unique_dim",
    "aten::_unique2",
}


@cache
def table() -> dict[str, str]:
    """Operator with its overload -> native, composite, fallback or missing."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


@dataclass
class Section:
    """What one part of the model ran. `hot`: the part runs once a token or once a step."""

    name: str
    hot: bool
    calls: Counter = field(default_factory=Counter)  # (operator, dtypes of its tensors) -> calls
    findings: list[str] = field(default_factory=list)

    def operators(self) -> dict[str, str]:
        return {name: table().get(name, "missing") for name, _ in self.calls}


class Watch(TorchDispatchMode):
    """Writes down every operator that reaches a device's kernels."""

    def __init__(self, section: Section):
        super().__init__()
        self.section = section

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.section.findings += note(self.section, function.name(), tensors, args)
        return out


class WatchAttention(TorchFunctionMode):
    """Attention is one operator on an NPU; its parts on a CPU are not looked at."""

    def __init__(self, section: Section):
        super().__init__()
        self.section = section

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.section.findings += note(self.section, ATTENTION, tensors, args)
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        if mask is not None and mask.dtype != torch.bool:
            self.section.findings.append(f"attention has a mask of {mask.dtype}, which takes the slow path")
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)


def note(section: Section, name: str, tensors: list[torch.Tensor], args: tuple) -> Iterator[str]:
    """Count one call of an operator; yields what is wrong with it."""
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    section.calls[name, ", ".join(dtypes)] += 1
    state = table().get(name, "missing")
    if state not in ("native", "composite"):
        yield f"{name} is a {state} on an NPU"
    for tensor in tensors:
        if tensor.dtype in FORBIDDEN:
            yield f"{name} has {tensor.dtype}"
        if tensor.ndim > MAX_DIMENSIONS:
            yield f"{name} has {tensor.ndim} dimensions"
    if section.hot and (name in WAITS or (name == "aten::index.Tensor" and _is_masked(args))):
        yield f"{name} waits for the device"


def _is_masked(args: tuple) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


@contextmanager
def npu_implementations(device: torch.device, fused: bool) -> Iterator[None]:
    """Run the kernels of a chip with fused operators, or of one without."""
    npu_reference_ops.define()
    from ..devices import npu_kernels as npu

    before = kernels.registered_kernels(device.type)
    kernels.register_kernels(device.type, **(npu.FUSED if fused else npu.FALLBACKS))
    try:
        yield
    finally:
        kernels.register_kernels(device.type, **before)


def audit(device: torch.device, dtype: torch.dtype, fused: bool = True) -> list[Section]:
    """Run every part once on a device; `fused` False is a chip without fused operators."""
    sections = []
    with torch.no_grad(), npu_implementations(device, fused):
        for name, hot, run in parts(device, dtype):
            section = Section(name, hot)
            with WatchAttention(section), Watch(section):
                run()
            section.findings = list(dict.fromkeys(section.findings))
            sections.append(section)
    return sections


def listing(section: Section) -> str:
    """One line an operator: calls, how an NPU runs it, its name, its dtypes."""
    lines = [section.name + (" (once a token or step)" if section.hot else "")]
    for (name, dtypes), calls in sorted(section.calls.items()):
        lines.append(f"  {calls:5}  {table().get(name, 'missing'):9}  {name:45} {dtypes}")
    return "\n".join(lines)


def summary(sections: list[Section]) -> str:
    """Distinct operators by how an NPU runs them, for each part and in all; then the findings."""
    lines = [f"{'':34} native  composite  fallback"]
    everything: dict[str, str] = {}
    for section in sections:
        everything |= section.operators()
        lines.append(_counts(section.name, section.operators()))
    lines.append(_counts("all (distinct operators)", everything))
    findings = [f"{section.name}: {finding}" for section in sections for finding in section.findings]
    return "\n".join(lines + (findings or ["nothing found that an NPU would do badly"]))


def _counts(name: str, operators: dict[str, str]) -> str:
    count = Counter(operators.values())
    return f"{name:34} {count['native']:6}  {count['composite']:9}  {count['fallback'] + count['missing']:8}"
