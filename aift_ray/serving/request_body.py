"""What all bodies of requests have in common: strictness, text, and what asks for nothing."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_DEEPEST = 100


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


def representable(value: dict[str, Any]) -> dict[str, Any]:
    """The same object; ValueError where it can't be written as JSON in UTF-8, or is too deep."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"is more than {_DEEPEST} levels deep")
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for part in parts for each in part if isinstance(each, dict | list)]
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    except ValueError:
        raise ValueError("holds NaN or an infinite number") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]
# an object that a template, a tokenizer and a grammar can be given
JsonObject = Annotated[dict[str, Any], AfterValidator(representable)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
# of a long list the first wrong item is told: a body has room for millions
FIRST_WRONG = Field(fail_fast=True)


class Body(BaseModel):
    """Strict: no number in quotes, no unknown field, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class OpenAIBody(Body):
    """A body of OpenAI's schema: an optional field that is null or empty asks for nothing.

    Attributes:
        meaningful: optional fields of which an empty value says something.
        repeats: clients send it back with fields of their own, which ask for nothing either while
            they are null or empty.
    """

    meaningful: ClassVar[frozenset[str]] = frozenset()
    repeats: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _without_idle_fields(cls, data: object) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        kept = {name for name, field in fields.items() if field.is_required()} | cls.meaningful
        if not cls.repeats:
            kept |= data.keys() - fields.keys()
        return {name: value for name, value in data.items() if name in kept or _says(value)}


def _says(value: object) -> bool:
    return value is not None and not (isinstance(value, str | list | dict) and not value)
