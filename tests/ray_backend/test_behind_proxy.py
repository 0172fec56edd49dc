"""`aift-ray serve` behind Debian's nginx and Caddy with TLS, by the examples in `cluster/proxy`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.helpers.ports import free_port
from tests.helpers.served import Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
FLAGS = ["--root-path", "/llm", "--forwarded-allow-ips", "127.0.0.1"]
# what nginx wants to write, in a folder of the test
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {server}
}}
"""
# the test's certificate instead of a public one, and no other port
CADDY = """
{{
  admin off
  auto_https disable_redirects
}}
{server}
"""


def program(name: str) -> str:
    """A proxy's program; the test is skipped where there is none."""
    named = os.environ.get(f"AIFT_{name.upper()}")
    found = named or shutil.which(name) or f"/usr/sbin/{name}"
    if not Path(found).exists():
        pytest.skip(f"there is no {name}: apt-get install {name}, or AIFT_{name.upper()}")
    return found


def replaced(name: str, pairs: list[tuple[str, str]]) -> str:
    """A file of `cluster/proxy` with its places replaced, each of which is in it."""
    text = (ROOT / "cluster" / "proxy" / name).read_text("utf-8")
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


class Proxy:
    """A proxy with the example's configuration, its places replaced."""

    def __init__(self, name: str, folder: Path, behind: int) -> None:
        found = program(name)
        self.port = free_port()
        certificate, key = folder / "host.pem", folder / "host.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        server = ("127.0.0.1:8000", f"127.0.0.1:{behind}")
        at = folder / name
        if name == "nginx":
            places = [("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"), server]
            places += [("/etc/ssl/llm.example.com.pem", str(certificate))]
            places += [("/etc/ssl/llm.example.com.key", str(key)), ("llm.example.com", "localhost")]
            text = NGINX.format(folder=folder, server=replaced("nginx.conf", places))
            command = [found, "-p", str(folder), "-c", str(at)]
        else:
            site = f"https://localhost:{self.port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}"
            text = CADDY.format(server=replaced("Caddyfile", [("llm.example.com {", site), server]))
            command = [found, "run", "--adapter", "caddyfile", "--config", str(at)]
        at.write_text(text, "utf-8")
        self.process = subprocess.Popen(
            command,
            stderr=(folder / "stderr").open("w"),
            env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        )
        context = ssl.create_default_context(cafile=str(certificate))
        self.http = httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=context, timeout=60
        )
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (folder / "stderr").read_text("utf-8")
            assert time.monotonic() < end, (folder / "stderr").read_text("utf-8")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self.http.get("/")
        except httpx.ConnectError:
            return False
        return True

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("behind"), *FLAGS)
    yield made
    made.stop()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(
    request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    name: str = request.param
    made = Proxy(name, tmp_path_factory.mktemp(name), served.port)
    yield made
    made.stop()


def test_the_page_and_the_routes_are_there_over_tls(served: Served, proxy: Proxy) -> None:
    assert proxy.http.get("/llm/healthz").json() == {"status": "ok"}
    assert proxy.http.get("/llm", follow_redirects=True).url.path == "/llm/"
    assert 'src="page/page.js"' in proxy.http.get("/llm/").text
    assert proxy.http.get("/llm/page/page.js").status_code == 200
    assert proxy.http.get("/llm/v1/models").status_code == 401
    assert proxy.http.get("/llm/-/routes").status_code in (401, 404)
    assert proxy.http.get("/v1/models").status_code == 404
    client = openai.OpenAI(
        base_url=f"https://localhost:{proxy.port}/llm/v1", api_key=served.key,
        http_client=httpx.Client(verify=proxy.http._transport._pool._ssl_context),  # type: ignore[attr-defined]
    )  # fmt: skip
    assert [model.id for model in client.models.list()] == ["hina-4m"]


def test_a_stream_passes_token_by_token(served: Served, proxy: Proxy) -> None:
    body: dict[str, Any] = {"model": "hina-4m", "prompt": "昔々、", "max_tokens": 200, "seed": 1}
    body |= {"stream": True, "logit_bias": {}, "temperature": 1}
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 100}
    body["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema},
    }
    headers = {"Authorization": f"Bearer {served.key}"}
    times = []
    path = "/llm/v1/completions"
    with proxy.http.stream("POST", path, json=body, headers=headers) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
                assert json.loads(line[6:])["choices"]
    # all at once would be a proxy that holds them back
    assert len(times) > 50
    assert times[-1] - times[0] > 0.1
    assert times[5] - times[0] < (times[-1] - times[0]) / 2


def test_a_body_that_is_too_large_is_refused_with_the_proxy_too(
    served: Served, proxy: Proxy
) -> None:
    headers = {"Authorization": f"Bearer {served.key}"}
    large = b"a" * (9 * 2**20)
    refused = proxy.http.post("/llm/v1/completions", content=large, headers=headers)
    assert refused.status_code == 413


def test_the_key_survives_a_restart(tmp_path: Path) -> None:
    served = Served(tmp_path)
    key = served.key
    first = served.log.read_text("utf-8")
    served.stop()
    # on the same port, which the key's file is named after
    again = Served(tmp_path, port=served.port)
    try:
        told = again.log.read_text("utf-8")
        assert again.key == ""
        assert key not in told
        [file] = (tmp_path / "state").rglob("key-*")
        assert file.name in told.replace("\n", "").replace(" ", "")
        assert file.name in first.replace("\n", "").replace(" ", "")
        headers = {"Authorization": f"Bearer {key}"}
        assert again.http.get("/v1/models", headers=headers).status_code == 200
    finally:
        again.stop()
    assert file.read_text("utf-8").strip() == key
