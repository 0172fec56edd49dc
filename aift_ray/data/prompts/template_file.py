"""A chat template that the user gives as a file, in place of the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aift_ray.errors import ConfigError, Problem

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.parser import Parser

_SETTING = "data.chat_template"


class _Generation(Extension):
    """The block `generation`, by which templates mark answers for transformers."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements within, as if they stood alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_template(name: str) -> str:
    """The text of a Jinja chat template, as it is in the file.

    Raises:
        ConfigError: the file can't be read, is no Jinja, or does not read `messages`.
    """
    file = Path(name).expanduser()
    remedy = "give a file such as a model's chat_template.jinja"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        what = f"{name} can't be read: {error.strerror or error}"
        raise ConfigError([Problem(_SETTING, what, remedy)]) from None
    except UnicodeDecodeError as error:
        what = f"{name} is not UTF-8: byte {error.start}"
        raise ConfigError([Problem(_SETTING, what, "save it as UTF-8")]) from None
    if "messages" not in text:
        what = f"{name} is no chat template: it does not read `messages`"
        raise ConfigError([Problem(_SETTING, what, remedy)])
    try:
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        ImmutableSandboxedEnvironment(extensions=extensions).parse(text)
    except TemplateSyntaxError as error:
        what = f"{name}:{error.lineno}: not Jinja: {error.message}"
        raise ConfigError([Problem(_SETTING, what, "mend it there")]) from None
    return text
