"""Writes pipeline/diagnostics/npu_ops.tsv: how torch_npu runs every operator, from the installed package's dispatcher.

native: torch_npu has a kernel. composite: PyTorch builds it from other operators. fallback: torch_npu copies to the
host and back. missing: not on an NPU at all. Which dtypes and shapes a kernel of CANN takes is not to be read here.
Usage: python tests/npu/run.py --python tools/npu_ops.py
"""

from pathlib import Path

import torch
import torch_npu
import torchgen
import yaml

OUT = Path(__file__).resolve().parents[1] / "pipeline" / "diagnostics" / "npu_ops.tsv"
NAMESPACES = ("aten", "npu")
COMPOSITES = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def delegates() -> dict[str, str]:
    """Operator -> the out= form that its structured kernel is built on, from PyTorch's own list."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.safe_load(path.read_text())
    names = {entry["func"].split("(")[0].strip(): entry for entry in entries}
    return {
        f"aten::{name}": f"aten::{e['structured_delegate']}"
        for name, e in names.items()
        if e.get("structured_delegate")
    }


def statuses() -> dict[str, str]:
    """Operator with its overload -> status."""
    built_on = delegates()
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.split("::")[0] in NAMESPACES]
    return {name: status(name, built_on) for name in sorted(names)}


def status(name: str, built_on: dict[str, str]) -> str:
    def has(key: str, operator: str = name) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)

    if has("PrivateUse1") or has("AutogradPrivateUse1"):
        return "native"
    if any(map(has, COMPOSITES)):
        return "composite"
    if has("CompositeExplicitAutogradNonFunctional"):  # made of its out= form, which must be there in turn
        out = built_on.get(name, name + ("_out" if "." in name else ".out"))
        return "native" if has("PrivateUse1", out) else "fallback"
    return "fallback" if has("CPU") else "missing"


def table() -> str:
    versions = f"torch {torch.__version__.split('+')[0]}, torch_npu {torch_npu.__version__.split('+')[0]}"
    lines = [f"# {versions}; made by tools/npu_ops.py", "operator\tstatus"]
    return "\n".join(lines + [f"{name}\t{state}" for name, state in statuses().items()]) + "\n"


if __name__ == "__main__":
    OUT.write_text(table())
    print(f"{OUT}: {len(OUT.read_text().splitlines()) - 2} operators")
