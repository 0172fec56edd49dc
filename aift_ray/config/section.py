"""What every group of settings shares: refusal of unknown names, positional arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from aift_ray.config.problems import wrong
from aift_ray.config.pydantic_compat import ModelMetaclass
from aift_ray.errors import ConfigError, Problem

SHIPPED_MODEL = "hina-4m"

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def setting(default: object, meaning: str, **limits: Any) -> Any:
    """A field with its meaning, which `--help` shows."""
    if isinstance(default, (list, dict, BaseModel)):
        return Field(default_factory=type(default), description=meaning, **limits)
    return Field(default, description=meaning, **limits)


def workers_range(value: int | str) -> int | str:
    """Check a number or MIN:MAX; ValueError says what is allowed."""
    parts = str(value).split(":")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError("give a number of 1 or more, or MIN:MAX, for example 2 or 1:4")
    least, most = int(parts[0]), int(parts[-1])
    if not 1 <= least <= most:
        raise ValueError("give 1 or more, and MIN not above MAX")
    return least if len(parts) == 1 else str(value)


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([GM]i?B)")
_UNITS = {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20}


def memory_size(value: str) -> str:
    """Check an amount of memory; ValueError says what is allowed."""
    if not _SIZE.fullmatch(value):
        raise ValueError("give a number with GB, GiB, MB or MiB, for example 22GB")
    return value


def memory_bytes(value: str) -> int:
    """Bytes of an amount that `memory_size` has checked."""
    match = _SIZE.fullmatch(value)
    assert match
    return int(float(match[1]) * _UNITS[match[2]])


_within: ContextVar[bool] = ContextVar("within another section", default=False)


class _Checked(ModelMetaclass):
    """What is constructed wrongly is a ConfigError that names every wrong field at once."""

    def __call__(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if _within.get():
            # the outermost section tells all mistakes
            return super().__call__(*args, **kwargs)
        token = _within.set(True)
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError([wrong(cls, dict(detail)) for detail in error.errors()]) from None
        finally:
            _within.reset(token)


class Section(BaseModel, metaclass=_Checked):
    """A group of settings; takes its fields by position too, in the order of declaration."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)

    _frozen: bool = PrivateAttr(default=False)

    def __init__(self, *args: object, **kwargs: object) -> None:
        names = list(type(self).model_fields)
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes at most {len(names)} arguments")
        for name, value in zip(names, args, strict=False):
            if name in kwargs:
                raise TypeError(f"{type(self).__name__} got two values for '{name}'")
            kwargs[name] = value
        super().__init__(**kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        if name in type(self).model_fields and self._frozen:
            raise TypeError(f"{type(self).__name__}.{name} can't be set: it is resolved")
        super().__setattr__(name, value)

    def frozen(self) -> Self:
        """A copy that can't be changed any more, nor can the sections in it."""
        found = self.model_copy(deep=True)
        found._freeze()
        return found

    def _freeze(self) -> None:
        self._frozen = True
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                value._freeze()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        # pydantic would show `*args` and each field's limits
        by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
        cls.__signature__ = inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    by_position,
                    default=field.get_default(call_default_factory=True),
                    annotation=_plain(field.annotation),
                )
                for name, field in cls.model_fields.items()
            ],
            return_annotation=None,
        )


def _plain(annotation: object) -> Any:
    """A type without limits: of Annotated[int, ...] int, of Literal["a", "b"] str."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return reduce(or_, map(_plain, get_args(annotation)))
    return annotation


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted name, value)."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Settings(Section):
    """All settings of a verb."""

    # dotted setting -> its short flag, or several
    short_flags: ClassVar[dict[str, str | list[str]]] = {}
    # flag -> the value that it has when none is given
    bare_flags: ClassVar[dict[str, str]] = {}

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        return []
