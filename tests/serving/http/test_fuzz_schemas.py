"""Schemas of all kinds, right and wrong: an answer or a 400, never a failure of the server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.helpers.served import Served

NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([10**30, -(2**63), 1e308, 0.1, 1e-9, -0.0])
)
NAMES = st.sampled_from(["a", "b", "町", "", "a b", "$ref", "\u0000", "窶🐈", "x" * 200])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=5,
)
TYPES = st.sampled_from(
    ["string", "number", "integer", "boolean", "null", "object", "array", "any", "", 5, None]
)
PATTERNS = st.sampled_from(
    ["^a+$", "(", "[", "\\d{2,4}", "(?=a)b", "a{1000}", "(a*)*$", "\\p{Han}+", "^[^窶]$", "\\1", ""]
)
REFERENCES = st.sampled_from(
    ["#", "#/$defs/a", "#/$defs/b", "#/definitions/a", "#/nothing", "http://example.com/s", "a", ""]
)
FORMATS = st.sampled_from(["date-time", "email", "uuid", "ipv4", "uri", "no such format", 3])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A schema with any of the keywords, each at right and at wrong values."""
    schemas = st.lists(inner, max_size=3)
    by_name = st.dictionaries(NAMES, inner, max_size=3)
    known: dict[str, st.SearchStrategy[Any]] = {
        "type": st.one_of(TYPES, st.lists(TYPES, max_size=3)),
        "enum": st.lists(VALUES, max_size=4),
        "const": VALUES,
        "properties": st.one_of(by_name, VALUES),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": st.one_of(st.booleans(), inner),
        "required": st.one_of(st.lists(NAMES, max_size=3), VALUES),
        "items": st.one_of(st.booleans(), inner, schemas),
        "prefixItems": schemas,
        "anyOf": schemas,
        "oneOf": schemas,
        "allOf": schemas,
        "not": inner,
        "if": inner,
        "then": inner,
        "$ref": st.one_of(REFERENCES, VALUES),
        "$defs": by_name,
        "definitions": by_name,
        "pattern": PATTERNS,
        "format": FORMATS,
        "x-guidance": st.one_of(VALUES, st.just({"whitespace_flexible": False})),
        "dependentRequired": VALUES,
        "title": VALUES,
        "default": VALUES,
    }
    sizes = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "multipleOf")
    more = ("exclusiveMinimum", "exclusiveMaximum", "minProperties", "maxProperties")
    known |= {name: st.one_of(NUMBERS, VALUES) for name in (*sizes, *more)}
    return st.fixed_dictionaries({}, optional=known).map(
        # a few of them at a time
        lambda schema: dict(list(schema.items())[:4])
    )


def some(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(keywords(inner), VALUES)


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.builds(dict, type=TYPES), st.builds(lambda ref: {"$ref": ref}, REFERENCES), st.booleans()
)
SCHEMAS = keywords(st.recursive(LEAVES, some, max_leaves=8))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("fuzzed"))
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_no_schema_fails_the_server(served: Served) -> None:
    statuses: dict[int, int] = {}
    slowest = [0.0]

    @settings(
        max_examples=500,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schema=SCHEMAS, as_tool=st.booleans(), stream=st.booleans())
    def check(schema: dict[str, Any], as_tool: bool, stream: bool) -> None:
        held = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"model": "hina-4m", "messages": [{"role": "user", "content": "a"}]}
        start = time.monotonic()
        asked = body | {"max_tokens": 3, "stream": stream, "response_format": held}
        response = served.http.post("/v1/chat/completions", json=asked)
        if as_tool:
            text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
            other = {"model": "hina-4m", "input": "a", "max_output_tokens": 3, "text": text}
            again = served.http.post("/v1/responses", json=other)
            assert again.status_code == response.status_code, (schema, again.text)
        slowest[0] = max(slowest[0], time.monotonic() - start)
        assert response.status_code in (200, 400), (schema, response.text)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        if response.status_code == 400:
            assert response.json()["error"]["param"], schema
        elif stream:
            last = [line for line in response.text.splitlines() if line][-1]
            assert last == "data: [DONE]", (schema, response.text)
        else:
            json.dumps(response.json())

    check()
    # both kinds came up, and the server lives
    assert min(statuses[200], statuses[400]) > 40, statuses
    assert served.http.get("/healthz").status_code == 200
    assert slowest[0] < 60
