"""What `aift-ray serve` answers on its routes, page and Serve's own routes included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.launch.served import Served
from tests.serving.conftest import write_adapter

pytestmark = pytest.mark.ray
PAGE = Path(__file__).resolve().parents[2] / "aift_ray" / "serving" / "page"
BASE = "工房/hina"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("routes")
    adapter = write_adapter(folder / "kansai", 3)
    made = Served(folder, "--adapter", f"kansai={adapter}", "--served-model-name", BASE)
    yield made
    made.stop()


def is_error(response: httpx.Response) -> bool:
    return set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_server_that_is_loading_is_503(served: Served) -> None:
    statuses = {response.status_code for response in served.loading}
    assert 503 in statuses
    assert statuses <= {200, 503}
    assert all(is_error(each) for each in served.loading if each.status_code == 503)


def test_every_file_that_the_page_names_is_there_for_everybody(served: Served) -> None:
    index = served.anybody("GET", "/")
    assert 'data-asks-key="yes"' in index.text
    modules = re.findall(r'from "\./([\w.]+)"', (PAGE / "page.js").read_text("utf-8"))
    named = [*re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)]
    assert {"page/page.js", "page/page.css", "page/icon.svg"} == set(named)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in (*named, *(f"page/{module}" for module in modules)):
        for response in (served.anybody("GET", f"/{path}"), served.http.get(f"/{path}")):
            assert response.status_code == 200, path
            assert response.text == (PAGE.parent / path).read_text("utf-8")
            assert response.headers["content-type"].startswith(kinds[path.rsplit(".")[-1]])
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
    assert served.anybody("GET", "/page/%2e%2e/web.py").status_code == 401
    assert served.http.get("/page/nothing.js").status_code == 404


@pytest.mark.parametrize("path", ["/", "/healthz", "/page/page.js"])
def test_head_is_get_without_a_body(served: Served, path: str) -> None:
    head, whole = served.anybody("HEAD", path), served.anybody("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_head_asks_for_the_key_where_get_does(served: Served) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        assert served.http.head(path).status_code == 200
        assert served.anybody("HEAD", path).status_code == 401
    assert served.http.head("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/-/", "/-/routes/", "/docs"])
def test_serves_own_routes_are_not_open(served: Served, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert served.anybody(method, path).status_code == 401
    known = served.http.get(path)
    assert known.status_code == 404
    assert is_error(known)


def test_a_model_is_found_by_its_name_with_a_slash_too(served: Served) -> None:
    client = openai.OpenAI(api_key=served.key, base_url=f"http://127.0.0.1:{served.port}/v1")
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == [BASE, "kansai"]
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
        # as it is, its slash not escaped
        assert served.http.get(f"/v1/models/{name}").json() == model.model_dump(exclude_unset=True)
    for name in ("hina", "工房", "kansai/", "../kansai", "a b"):
        response = served.http.get(f"/v1/models/{name.replace('.', '%2E')}")
        assert response.status_code == 404
        assert is_error(response)
    assert served.anybody("GET", "/v1/models/kansai").status_code == 401
