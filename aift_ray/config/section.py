"""What every group of settings shares: refusal of unknown names, positional arguments."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from aift_ray.errors import Problem

SHIPPED_MODEL = "hina-4m"

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def setting(default: Any, meaning: str, **limits: Any) -> Any:
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


class Section(BaseModel):
    """A group of settings; takes its fields by position too, in the order of declaration."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = list(type(self).model_fields)
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes at most {len(names)} arguments")
        for name, value in zip(names, args, strict=False):
            if name in kwargs:
                raise TypeError(f"{type(self).__name__} got two values for '{name}'")
            kwargs[name] = value
        super().__init__(**kwargs)


class Settings(Section):
    """All settings of a verb."""

    # dotted setting -> its short flag
    short_flags: ClassVar[dict[str, str]] = {}

    def contradictions(self) -> list[Problem]:
        """Settings that are each allowed and can't stand together."""
        return []
