"""The web page in a browser, on the real application with the shipped model."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

KEY = "aift-鍵"
QUESTION = "次の文をくり返してください。\n今日は朝から雨が降っている。"
# an answer that goes on until it is stopped
ENDLESS = {"temperature": "2", "top_p": "1", "top_k": "0", "max_tokens": "1500"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application behind uvicorn, with one adapter."""
    import uvicorn

    from aift_ray.config import ServeConfig
    from aift_ray.serving import application, opening, web
    from aift_ray.serving.keys import Keys

    folder = tmp_path_factory.mktemp("page")
    (folder / "keys").write_text(f"{KEY}\n", encoding="utf-8")
    config = ServeConfig(adapters=[f"大阪弁={_adapter(folder / 'adapter')}"])
    services: list[Any] = []

    async def start() -> None:
        services.append(await opening.start(opening.check(config, gpu=False)))

    app = application.build(lambda: services[0], Keys(folder / "keys"), start)
    served = web.Page(app, asks_key=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def _adapter(folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tests.conftest import SHIPPED

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model: Any = get_peft_model(base, lora)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
