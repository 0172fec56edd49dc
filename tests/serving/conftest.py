"""Models and adapters to serve."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from aift_ray.config import ServeConfig, ServingConfig
from aift_ray.serving import served_models, startup
from aift_ray.serving.adapter_record import AdapterRecord
from aift_ray.serving.api_keys import Keys
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from aift_ray.serving.http import app
from tests.conftest import SHIPPED
from tests.helpers.served import Served
from tests.serving import vllm_environment

T = TypeVar("T")


def load(folder: Path = SHIPPED) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # so that generate() goes on to the length that is asked for
    model.generation_config.eos_token_id = None
    return model


def write_adapter(folder: Path, seed: int, base: Path = SHIPPED, **options: Any) -> Path:
    """A LoRA adapter that changes what the model says, with the base's tokenizer beside it."""
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **(settings | options)))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the shipped model."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, seed) for seed, name in enumerate(("大阪弁", "b"))}


@pytest.fixture(scope="module")
def plain() -> Any:
    """The shipped model in fp32."""
    return load()


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    """An engine on the shipped model."""
    made = TransformersEngine(load(), slots=4, max_queue=8)
    yield made
    made.close()


class Site:
    """The whole application in this process, without Ray: two adapters, one key."""

    KEY = "sk-secret"

    def __init__(self, folder: Path, adapters: dict[str, Path], **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.key_file = folder / "keys"
        self.key_file.write_text(f"# keys\n\n{self.KEY}\n", "utf-8")
        given = [f"{name}={path}" for name, path in adapters.items()]
        model = settings.pop("model", ServeConfig().model)
        load_in = settings.pop("load_in", None)
        serving = ServingConfig(**({"slots": 4} | settings))
        config = ServeConfig(model=model, adapters=given, load_in=load_in, serving=serving)
        self.shelf = served_models.recorded(config)
        self.service = self.run(startup.start(startup.check(config, False), self.shelf))

        async def started() -> None: ...

        folder = settings.get("adapter_folder")
        keys = Keys(self.key_file)
        self.app = app.build(lambda: self.service, self, folder, keys, started)

    async def everywhere(self, method: str, *args: Any) -> list[Any]:
        return [await getattr(self.service, method)(*args)]

    async def recorded(self) -> dict[str, AdapterRecord]:
        return self.shelf

    async def record(self, name: str, wanted: AdapterRecord | None) -> None:
        self.shelf.pop(name, None)
        if wanted:
            self.shelf[name] = wanted

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def client(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://site", headers=headers)

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self.KEY, base_url="http://site/v1", http_client=self.client(), max_retries=0
        )

    def send(self, method: str, path: str, key: str | None = KEY, **content: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            async with self.client(key) as client:
                return await client.request(method, path, **content)

        return self.run(sent())

    def close(self) -> None:
        self.service.engine.close()
        self.loop.close()


class VllmSite(Site):
    """`aift-ray serve --engine vllm`, on Ray, in vLLM's own environment, over HTTP."""

    def __init__(self, folder: Path, adapters: dict[str, Path], *flags: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.key_file = folder / "keys"
        self.key_file.write_text(f"{self.KEY}\n", "utf-8")
        given = [
            part for name, path in adapters.items() for part in ("--adapter", f"{name}={path}")
        ]
        given += ["--engine", "vllm", "--vllm.enforce_eager", "true", "--serving.slots", "4"]
        given += ["--api-key-file", str(self.key_file), *flags]
        self.served = Served(folder, *given, python=str(vllm_python()), patience_s=900)

    def client(self, key: str | None = Site.KEY) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
        url = f"http://127.0.0.1:{self.served.port}"
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=60)

    def openai(self) -> openai.AsyncOpenAI:
        url = f"http://127.0.0.1:{self.served.port}/v1"
        return openai.AsyncOpenAI(
            api_key=self.KEY, base_url=url, http_client=self.client(), max_retries=0
        )

    def figure(self, name: str) -> float:
        """A figure of /metrics, all replicas together."""
        lines = self.send("GET", "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def close(self) -> None:
        self.served.stop()
        self.loop.close()


def vllm_python() -> Path:
    """The interpreter that has vLLM; skips where there is none."""
    found = vllm_environment.python()
    if found is None:
        pytest.skip("there is no environment with vLLM: make vllm-env")
    return found


@pytest.fixture(
    scope="session",
    params=["transformers", pytest.param("vllm", marks=[pytest.mark.slow, pytest.mark.ray])],
)
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    adapters: dict[str, Path],
) -> Iterator[Site]:
    kind = Site if request.param == "transformers" else VllmSite
    made = kind(tmp_path_factory.mktemp("site"), adapters)
    yield made
    made.close()
