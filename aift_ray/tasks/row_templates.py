"""Templates and expressions of a task, over the fields of a row."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.sandbox

if TYPE_CHECKING:
    from aift_ray.tasks.task import Task


class WrongField(ValueError):
    """A field of a row is missing or not what the task takes it for.

    Attributes:
        field: of the task, that asks for it.
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field


# what a template raises of a row that it was not written for
_WRONG = (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def _as_text(value: object) -> object:
    """What a template writes; an error for what would be written as Python writes it."""
    if value is None or isinstance(value, dict):
        kind = "null" if value is None else "an object"
        raise jinja2.TemplateRuntimeError(f"it would write {kind}; use {{{{ ... | tojson }}}}")
    return value


# what templates may use
ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,
    finalize=_as_text,
)


@lru_cache(maxsize=64)
def compiled(template: str) -> jinja2.Template:
    """A template; TemplateSyntaxError where it is none."""
    return ENVIRONMENT.from_string(template)


def render(task: Task, field: str, row: dict[str, Any]) -> str:
    """The text of a task's template for the fields of a row.

    Raises:
        WrongField: the row lacks a field, or has it in another form.
    """
    try:
        return compiled(getattr(task, field)).render(row)
    except _WRONG as error:
        raise _failed(field, error, row) from None


@lru_cache(maxsize=64)
def expression(source: str) -> Any:
    """A function of the fields of a row; TemplateSyntaxError where it is none."""
    return ENVIRONMENT.compile_expression(source, undefined_to_none=False)


def evaluate(task: Task, field: str, row: dict[str, Any]) -> Any:
    """The value of a task's expression for the fields of a row.

    Raises:
        WrongField: the row lacks a field, or has it in another form.
    """
    source = getattr(task, field)
    try:
        value = expression(source)(**row)
        if isinstance(value, jinja2.Undefined):
            raise jinja2.UndefinedError(f"{source!r} is undefined")
    except _WRONG as error:
        raise _failed(field, error, row) from None
    return value


def _failed(field: str, error: Exception, row: dict[str, Any]) -> WrongField:
    what = str(error) if isinstance(error, jinja2.TemplateError) else repr(error)
    return WrongField(field, f"{what}; the row has {', '.join(map(repr, row))}")
