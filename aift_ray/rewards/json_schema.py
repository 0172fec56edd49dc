"""Whether an answer is JSON of a schema."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)


def valid(text: str, schema: object) -> float:
    """1 where a text is JSON, bare or in one fence of Markdown, that a schema allows, else 0.

    Args:
        schema: an object, its JSON, or None: any JSON is valid.

    Raises:
        ValueError: the schema is none.
    """
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    if schema is None:
        return 1.0
    source = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
    return float(_validator(source).is_valid(value))


def wrong(schema: object) -> str:
    """Why an object is no JSON schema; "" where it is one."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (jsonschema.SchemaError, AttributeError, TypeError) as error:
        return str(getattr(error, "message", error))
    return ""


@lru_cache(maxsize=256)
def _validator(source: str) -> Any:
    import jsonschema
    import referencing

    try:
        schema = json.loads(source)
    except ValueError as error:
        raise ValueError(f"the schema is no JSON: {error}") from None
    if said := wrong(schema):
        raise ValueError(f"the schema is no JSON schema: {said}")
    # an empty registry: references to other addresses are not fetched
    kind = jsonschema.validators.validator_for(schema)
    return kind(schema, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
