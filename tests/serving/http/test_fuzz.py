"""What schemathesis makes of /openapi.json: every answer is one that the schema names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.serving.conftest import Site

ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/generate"),
    ("POST", "/tokenize"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
]


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path]) -> Iterator[Site]:
    """A server that gives no answer more than a second."""
    folder = tmp_path_factory.mktemp("hurried")
    made = Site(folder, adapters, adapter_folder=str(folder), request_timeout_s=1.0)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_that_the_schema_allows_breaks_the_server(
    hurried: Site, method: str, path: str
) -> None:
    schema = schemathesis.openapi.from_dict(hurried.send("GET", "/openapi.json").json())

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy())
    def check(case: Any) -> None:
        body = {} if isinstance(case.body, schemathesis.core.NotSet) else {"json": case.body}
        try:
            response = hurried.send(method, case.formatted_path, **body)
        except (UnicodeEncodeError, ValueError):
            return  # not JSON, as httpx writes it
        assert response.status_code < 500 or response.status_code == 504, response.text
        if response.status_code >= 400:
            anthropics = {"message", "type"}
            openais = anthropics | {"param", "code"}
            wanted = anthropics if path.startswith("/v1/messages") else openais
            assert set(response.json()["error"]) == wanted

    check()


def test_every_route_is_fuzzed(site: Site) -> None:
    paths = site.send("GET", "/openapi.json").json()["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert told == set(ROUTES)
