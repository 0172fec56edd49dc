"""Under a proxy's path, by pages of other origins, with a key that stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aift_ray.config import ServeConfig
from aift_ray.errors import ConfigError
from aift_ray.ray_backend import serve_ingress
from aift_ray.runs import server_key
from aift_ray.serving.api_keys import Keys
from aift_ray.serving.http import app as application
from aift_ray.serving.http.proxy_cors import Outside
from tests.serving.conftest import Site

CHAT = "https://chat.example.com"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server under /llm that one other origin may ask."""
    made = Site(tmp_path_factory.mktemp("behind"), {})

    async def started() -> None: ...

    fleet: Any = made
    outside = Outside("/llm", [CHAT])
    keys = Keys(made.key_file)
    made.app = application.build(lambda: made.service, fleet, None, keys, started, outside)
    yield made
    made.close()


@pytest.mark.parametrize("root", ["", "/llm"])
def test_every_route_is_there_with_the_proxys_path_and_without(behind: Site, root: str) -> None:
    assert behind.send("GET", f"{root}/healthz", key=None).json() == {"status": "ok"}
    page = behind.send("GET", f"{root}/", key=None)
    assert 'src="page/page.js"' in page.text
    assert behind.send("GET", f"{root}/page/page.js", key=None).status_code == 200
    assert behind.send("GET", f"{root}/v1/models", key=None).status_code == 401
    assert behind.send("GET", f"{root}/v1/models/hina-4m").json()["id"] == "hina-4m"
    body = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 2}
    assert behind.send("POST", f"{root}/v1/completions", json=body).status_code == 200
    assert behind.send("GET", f"{root}/nothing").status_code == 404
    schema = behind.send("GET", f"{root}/openapi.json").json()
    assert schema["servers"] == [{"url": "/llm"}]


def test_a_refused_page_of_another_origin_gets_an_error_in_the_usual_shape(behind: Site) -> None:
    asks = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    response = behind.send("OPTIONS", "/v1/models", key=None, headers=asks)
    assert response.status_code == 400
    # what is not JSON would be taken for the words of Serve, and answered with 503
    assert response.headers["content-type"] == "application/json"
    assert "origin" in response.json()["error"]["message"]
    assert "access-control-allow-origin" not in response.headers


def test_the_page_of_a_path_is_found_without_its_last_slash(behind: Site) -> None:
    response = behind.send("GET", "/llm", key=None)
    assert (response.status_code, response.headers["location"]) == (307, "/llm/")
    # another path that only begins alike
    assert behind.send("GET", "/llmx/healthz").status_code == 404


def preflight(site: Site, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return site.send("OPTIONS", "/v1/chat/completions", key=None, headers=headers)


def test_browsers_let_named_origins_ask(behind: Site) -> None:
    allowed = preflight(behind, CHAT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == CHAT
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    assert "access-control-allow-origin" not in preflight(behind, "https://evil.example").headers
    for key, status in ((Site.KEY, 200), (None, 401)):
        told = behind.send("GET", "/v1/models", key=key, headers={"Origin": CHAT})
        assert told.status_code == status
        assert told.headers["access-control-allow-origin"] == CHAT


def test_no_other_origin_may_ask_unless_it_is_named(site: Site) -> None:
    assert preflight(site, CHAT).status_code == 401
    told = site.send("GET", "/v1/models", headers={"Origin": CHAT})
    assert "access-control-allow-origin" not in told.headers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("root_path", "llm"),
        ("root_path", "/a b"),
        ("root_path", "/../x"),
        ("allowed_origins", ["chat.example.com"]),
        ("allowed_origins", ["https://chat.example.com/"]),
        ("allowed_origins", ["https://*.example.com"]),
        ("forwarded_allow_ips", ["*"]),
        ("forwarded_allow_ips", ["proxy.example.com"]),
    ],
)
def test_a_wrong_place_is_refused(field: str, value: Any) -> None:
    from aift_ray.commandline import validated

    with pytest.raises(ConfigError, match=field):
        validated({"serving": {field: value}}, ServeConfig)


def test_nobodys_forwarded_headers_count_unless_named() -> None:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    async def seen(proxies: list[str]) -> Any:
        found: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append((scope["client"][0], scope["scheme"]))

        trusted = serve_ingress.trust(proxies)["FORWARDED_ALLOW_IPS"]
        headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]
        scope: Any = {"type": "http", "client": ("10.0.0.5", 1), "scheme": "http",
                      "headers": headers}  # fmt: skip
        await ProxyHeadersMiddleware(app, trusted)(scope, None, None)  # type: ignore[arg-type]
        return found[0]

    import asyncio

    assert asyncio.run(seen([])) == ("10.0.0.5", "http")
    assert asyncio.run(seen(["10.0.0.6"])) == ("10.0.0.5", "http")
    assert asyncio.run(seen(["10.0.0.5"])) == ("203.0.113.9", "https")
    assert asyncio.run(seen(["10.0.0.0/8"])) == ("203.0.113.9", "https")


def test_a_made_key_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file, key = server_key.key(8000)
    assert key
    assert Keys(Path(file)).accepts(key)
    assert server_key.key(8000) == (file, None)
    # another server has another
    other, further = server_key.key(8001)
    assert (other != file, further not in (key, None)) == (True, True)
    Path(file).chmod(0o644)
    server_key.key(8000)
    assert Path(file).stat().st_mode & 0o777 == 0o600
    server_key.check(8000)
    Path(file).write_text("\n", "utf-8")
    for look in (server_key.check, server_key.key):
        with pytest.raises(ConfigError, match="holds no key"):
            look(8000)
