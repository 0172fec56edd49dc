"""No dead settings: each one of a server, changed, changes the server, or is an error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from aift_ray.commandline import validated
from aift_ray.config import ServeConfig
from aift_ray.config.section import leaves
from aift_ray.errors import UserError
from aift_ray.ray_backend import serve_app, serve_ingress, serve_options
from aift_ray.serving import served_models, startup
from aift_ray.serving.http.proxy_cors import Outside
from tests.conftest import SHIPPED

CHANGED: dict[str, Any] = {
    "model": "other",
    "adapters": ["b=adapter"],
    "load_in": "8bit",
    "dtype": "bf16",
    "engine": "other",
    "served_model_name": "mine",
    "vllm.max_model_len": 512,
    "vllm.gpu_memory_utilization": 0.5,
    "vllm.kv_cache_memory": "1GiB",
    "vllm.max_loras": 3,
    "vllm.max_lora_rank": 128,
    "vllm.tensor_parallel_size": 2,
    "vllm.enforce_eager": True,
    "serving.host": "0.0.0.0",
    "serving.port": 8001,
    "serving.root_path": "/llm",
    "serving.forwarded_allow_ips": ["10.0.0.5"],
    "serving.allowed_origins": ["https://chat.example.com"],
    "serving.api_key_file": "keys",
    "serving.adapter_folder": "absent",
    "serving.no_auth": True,
    "serving.num_replicas": "1:2",
    "serving.slots": 3,
    "serving.max_queue": 1,
    "serving.request_timeout_s": 1.0,
    "serving.idle_timeout_s": 1.0,
    "serving.drain_timeout_s": 1.0,
    "serving.prefix_memory": "1GiB",
    "serving.kv_cache_memory": "1GiB",
    "serving.cpus_per_replica": 2,
}


def observed(config: ServeConfig) -> dict[str, Any]:
    """What the settings make of a server."""
    made = asyncio.run(startup.start(startup.check(config, False), served_models.recorded(config)))
    made.engine.close()
    replica = serve_app.deployment(config, serve_app.key_file(config), {"CPU": 4})
    deployment = replica._bound_deployment
    return {
        "names": (made.name, made.adapters),
        "weights": {str(p.dtype) for p in made.engine._model.parameters()},
        "limits": made.limits,
        "engine": (made.engine._slots, made.engine._max_queue, made.engine._prefixes.memory),
        "budget": config.serving.kv_cache_memory and made.engine.budget,
        "deployment": str(deployment._deployment_config),
        "actor": str(deployment.ray_actor_options),
        "arguments": deployment.init_args[1:],
        "http": str(serve_options.http_options(config)),
        "outside": Outside.of(config.serving),
        "proxies": serve_ingress.trust(config.serving.forwarded_allow_ips),
        "guarded": serve_app.key_file(config) is not None or not config.serving.no_auth,
    }


def test_every_setting_has_an_effect_or_an_error(
    tmp_path: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(CHANGED) == {name for name, _ in leaves(ServeConfig())}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").symlink_to(SHIPPED)
    (tmp_path / "adapter").symlink_to(adapters["b"])
    (tmp_path / "keys").write_text("key\n", "utf-8")
    plain, dead = observed(validated({}, ServeConfig)), []
    for name, value in CHANGED.items():
        section, _, last = name.rpartition(".")
        settings = {section: {last: value}} if section else {last: value}
        try:
            if observed(validated(json.loads(json.dumps(settings)), ServeConfig)) == plain:
                dead.append(name)
        except UserError:
            continue
    assert dead == []
