"""`aift-ray serve` behind Debian's nginx with TLS, by the example in `cluster/proxy`."""

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
from tests.launch.served import Served
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]
FLAGS = ["--root-path", "/llm", "--forwarded-allow-ips", "127.0.0.1"]
# what nginx wants to write, in a folder of the test
AROUND = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {server}
}}
"""


class Proxy:
    """nginx with the example's configuration, its places replaced."""

    def __init__(self, folder: Path, behind: int) -> None:
        program = os.environ.get("AIFT_NGINX") or shutil.which("nginx") or "/usr/sbin/nginx"
        if not Path(program).exists():
            pytest.skip("there is no nginx: apt-get install nginx, or name it by AIFT_NGINX")
        self.port = free_port()
        certificate, key = folder / "host.pem", folder / "host.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        text = (ROOT / "cluster" / "proxy" / "nginx.conf").read_text("utf-8")
        for old, new in (
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("127.0.0.1:8000", f"127.0.0.1:{behind}"),
            ("/etc/ssl/llm.example.com.pem", str(certificate)),
            ("/etc/ssl/llm.example.com.key", str(key)),
            ("llm.example.com", "localhost"),
        ):
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(AROUND.format(folder=folder, server=text), "utf-8")
        self.process = subprocess.Popen(
            [program, "-p", str(folder), "-c", str(folder / "nginx.conf")],
            stderr=(folder / "stderr").open("w"),
        )
        context = ssl.create_default_context(cafile=str(certificate))
        self.http = httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=context, timeout=60
        )
        for _ in range(100):
            try:
                self.http.get("/")
                break
            except httpx.ConnectError:
                assert self.process.poll() is None, (folder / "stderr").read_text("utf-8")
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("behind"), *FLAGS)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def proxy(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    made = Proxy(tmp_path_factory.mktemp("nginx"), served.port)
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


def test_a_body_that_is_too_large_is_refused_with_the_proxy_too(proxy: Proxy) -> None:
    assert proxy.http.post("/llm/v1/completions", content=b"a" * (9 * 2**20)).status_code == 413


def test_the_key_survives_a_restart(served: Served, proxy: Proxy) -> None:
    folder = served.log.parent
    key = served.key
    first = served.log.read_text("utf-8")
    served.stop()
    # on the same port, which the key's file is named after
    again = Served(folder, *FLAGS, port=served.port)
    try:
        told = again.log.read_text("utf-8")
        assert again.key == ""
        assert key not in told
        [file] = (folder / "state").rglob("key-*")
        assert file.name in told.replace("\n", "").replace(" ", "")
        assert file.name in first.replace("\n", "").replace(" ", "")
        headers = {"Authorization": f"Bearer {key}"}
        assert proxy.http.get("/llm/v1/models", headers=headers).status_code == 200
    finally:
        again.stop()
    assert file.read_text("utf-8").strip() == key
