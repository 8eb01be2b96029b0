"""Chat templates: programs that come with a checkpoint, so that they run in a sandbox and within bounds.

Set up as transformers sets them up. What differs: work is limited, where a template of two nested loops could keep a
processor for hours, and a product or a filter could ask for all memory.
"""

import json
import sys
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

from ..errors import CheckpointError

MAX_SOURCE = 1 << 20  # characters of a template; the release's has 3,000
MAX_LINES = 1_000_000  # steps of one rendering, about a second; a prompt takes some hundred
MAX_PRODUCT = 1 << 20  # of a number, or of the length of a repeated text
GROWING = ("center", "format", "indent")  # filters that make a text of any length


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context, operator, left, right):
        if operator == "**" or (operator == "%" and isinstance(left, str)) or _product(left, right) > MAX_PRODUCT:
            raise jinja2.TemplateError(f"the operator {operator} is not allowed with such large values")
        return super().call_binop(context, operator, left, right)


def _product(left, right) -> int:
    """How large a product can get."""
    size = 1
    for value in (left, right):
        size *= abs(value) if isinstance(value, (int, float)) else len(value)
    return size


def compile_template(source: str, path: Path) -> jinja2.Template:
    """The template in a sandbox; one that is none is an error that names its file."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_template_error
    del environment.globals["lipsum"]
    for name in GROWING:
        del environment.filters[name]
    if not isinstance(source, str) or len(source) > MAX_SOURCE:
        raise CheckpointError(f"{path} is not a template, or longer than {MAX_SOURCE:,} characters")
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a template: {error or type(error).__name__}") from None


def render_bounded(template: jinja2.Template, **values) -> str:
    """`template.render`, ended by an error after `MAX_LINES` steps."""
    left, before = MAX_LINES, sys.gettrace()

    def count(frame, event, argument):
        nonlocal left
        left -= 1
        if left < 0:
            raise jinja2.TemplateError(f"it takes more than {MAX_LINES:,} steps")
        return count

    sys.settrace(count)
    try:
        return template.render(**values)
    finally:
        sys.settrace(before)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_template_error(message: str):
    raise jinja2.TemplateError(message)
