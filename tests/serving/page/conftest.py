"""A browser, and one launched server for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.page_visitor import CHROMIUM, ELSEWHERE, KEY, Visit, Visitor
from tests.helpers.served import Served


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory, adapters: dict[str, Path]) -> Iterator[str]:
    """Where `aift-ray serve` listens."""
    folder = tmp_path_factory.mktemp("page")
    key_file = folder / "keys"
    key_file.write_text(f"{KEY}\n", encoding="utf-8")
    given = [part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")]
    served = Served(folder, "--api-key-file", str(key_file), *given)
    yield f"http://127.0.0.1:{served.port}"
    served.stop()


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """Opens the page; at the end no visitor may have asked another host for anything."""
    visitors: list[Visitor] = []

    def opened(host: str = "127.0.0.1", **options: Any) -> Visitor:
        visitors.append(Visitor(browser, address.replace("127.0.0.1", host), **options))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        # what the page makes itself, a file to download, has its origin in the address too
        urls = [url.removeprefix("blob:") for url in visitor.urls]
        assert [url for url in urls if not url.startswith(f"{visitor.address}/")] == []
        visitor.context.close()
