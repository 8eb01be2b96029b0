"""Every value of a node is compared with its widget before anything is opened.

ComfyUI 0.3.75 does not compare a V3 combo with its list, lets NaN pass as a number in range, and no version looks at
values that come by a link. So combos and floats are checked when a graph is queued, and all inputs when a node runs:
values of widgets, and shapes of images, masks and latents, which other nodes may give without rows or with a row more.
Links to inputs that a node does not have reach it as well, from graphs written by hand or for another version.

A node may list `checks`, functions of its inputs by their names that raise for what would be refused later anyway. They
run when a graph is queued, with values that are known by then, and the page marks the node before anything is computed;
with values that come by links they run when the node does.
"""

import functools
import inspect
import math
from collections.abc import Iterable

import torch
from comfy_api.latest import io

from ...pipeline.errors import InputError
from ...pipeline.text import shown

LISTED = 8  # choices to name
SHAPES = {  # socket -> dimensions, and what they are
    "IMAGE": ((4,), "(images, height, width, 3 or 4)"),
    "MASK": ((2, 3), "(masks, height, width)"),
    "LATENT": ((4,), "(images, channels, height, width)"),
}


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node class, which now refuses values that its widgets do not offer."""
    node.validate_inputs = classmethod(_validator(node))
    node.execute = classmethod(_checked(node.execute.__func__))
    return node


def check(node: type[io.ComfyNode], values: dict[str, object]) -> None:
    """Raise `InputError` for the first value that its widget does not offer; None is a link whose value is unknown."""
    for widget in node.define_schema().inputs:
        value = values.get(widget.id)
        if value is None:
            continue
        if isinstance(widget, io.Combo.Input):
            _check_choice(widget, value)
        elif isinstance(widget, (io.Float.Input, io.Int.Input)):
            _check_number(widget, value)
        elif isinstance(widget, io.String.Input) and not isinstance(value, str):
            raise InputError(f"{widget.id} is no text but a {type(value).__name__}; connect a text")
        elif widget.get_io_type() in SHAPES:
            _check_shape(widget.id, widget.get_io_type(), value)


def check_complete(node: type[io.ComfyNode], values: dict[str, object]) -> dict[str, object]:
    """The values that are there; raise `InputError` for a required one that a link brought as None."""
    for widget in node.define_schema().inputs:
        if not widget.optional and values.get(widget.id) is None:
            raise InputError(f"{widget.id} is empty; the node that it comes from gave nothing")
    return {name: value for name, value in values.items() if value is not None}


def _check_shape(name: str, kind: str, value: object) -> None:
    tensor = value.get("samples") if kind == "LATENT" and isinstance(value, dict) else value
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is no {kind} but a {type(value).__name__}; connect one")
    counts, words = SHAPES[kind]
    channels = kind != "IMAGE" or tensor.shape[-1:] in ((3,), (4,))
    if tensor.ndim not in counts or not tensor.numel() or not channels:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; it takes {words}, none of them 0")


def _check_choice(widget, value: object) -> None:
    options = list(widget.options)
    if value in options:
        return
    more = f" and {len(options) - LISTED} more" if len(options) > LISTED else ""
    offered = ", ".join(map(str, options[:LISTED])) or "nothing yet"
    raise InputError(f"{widget.id} {shown(value)} is not in the list; choose from {offered}{more}")


def _check_number(widget, value: object) -> None:
    kinds = int if isinstance(widget, io.Int.Input) else (int, float)
    low, high = widget.min, widget.max
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or abs(value) == math.inf:
        what = "a whole number" if kinds is int else "a number"
        raise InputError(f"{widget.id} {shown(value)} is out of range; use {what} from {low} to {high}")


def check_names(node: type[io.ComfyNode], given: Iterable[str]) -> None:
    """Raise `InputError` for the first input that the node does not have."""
    known = [one.id for one in node.define_schema().inputs]
    if unknown := next((name for name in given if name not in known), None):
        raise InputError(f"there is no input {shown(unknown)}; remove it, or use one of {', '.join(known)}")


def run_checks(node: type[io.ComfyNode], known: dict[str, object]) -> None:
    """Run those of the node's `checks` whose values are all known."""
    for one in getattr(node, "checks", ()):
        names = _read_by(one)
        if all(known.get(name) is not None for name in names):
            one(**{name: known[name] for name in names})


def _checked(execute):
    """`execute` after a check of its arguments, synchronous or not as it was."""

    def checked(cls, values) -> dict[str, object]:
        check_names(cls, values)
        check(cls, values)
        there = check_complete(cls, values)
        run_checks(cls, there)
        return there

    if inspect.iscoroutinefunction(execute):

        @functools.wraps(execute)
        async def run(cls, **values):
            return await execute(cls, **checked(cls, values))
    else:

        @functools.wraps(execute)
        def run(cls, **values):
            return execute(cls, **checked(cls, values))

    return run


def _validator(node: type[io.ComfyNode]):
    """What ComfyUI calls when a graph is queued. It reads the names of the inputs it passes from the signature."""
    kinds = (io.Combo.Input, io.Float.Input)
    wanted = {name for one in getattr(node, "checks", ()) for name in _read_by(one)}
    names = [w.id for w in node.define_schema().inputs if isinstance(w, kinds) or w.id in wanted]

    def validate_inputs(cls, **values):
        check(cls, values)  # raised, and not returned: ComfyUI would repeat a returned sentence for every name
        run_checks(cls, values)  # what comes by a link is None here
        return True

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("cls", kind), *(inspect.Parameter(name, kind, default=None) for name in names)]
    validate_inputs.__signature__ = inspect.Signature(parameters)
    return validate_inputs


def _read_by(function) -> list[str]:
    """Names of the arguments that a function must have."""
    return [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
