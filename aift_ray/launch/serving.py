"""A server on Ray Serve: replicas, their autoscaling, the command that starts and stops them."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from aift_ray.config import ServeConfig
from aift_ray.errors import AiftError, ConfigError, Problem
from aift_ray.launch import display, workers
from aift_ray.serving import keys, opening

NAME = "aift-ray"


@serve.deployment
@serve.ingress()
class Server:
    """One replica.

    Args:
        key_file: None: nobody is asked for a key.
    """

    def __init__(self, config: ServeConfig, key_file: str | None, threads: int) -> None:
        import torch

        workers.quiet()
        torch.set_num_threads(threads)
        self._keys = keys.Keys(Path(key_file)) if key_file else None
        self._checked = opening.check(config, bool(ray.get_gpu_ids()))
        self._service: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from aift_ray.serving.application import build

        return build(lambda: self._service, self._keys, self._open)

    async def _open(self) -> None:
        self._service = await opening.start(self._checked)

    async def check_health(self) -> None:
        """Raises where the engine is dead, so that Serve starts another replica."""
        if self._service is not None and not self._service.engine.alive():
            raise RuntimeError("the engine is stopped")


def deployment(config: ServeConfig, key_file: str | None, resources: dict[str, float]) -> Any:
    """The application for `serve.run`."""
    serving, (least, most) = config.serving, config.replicas()
    gpus = 1 if resources.get("GPU", 0) >= most else 0
    share = 1 if gpus else max(1, int(resources.get("CPU", 1)) // most)
    cpus = serving.cpus_per_replica or share
    environment = workers.environment() | {"OMP_NUM_THREADS": str(cpus)}
    options: dict[str, Any] = {"num_replicas": least}
    if most > least:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least,
                max_replicas=most,
                # more than its slots hold means that requests wait
                target_ongoing_requests=serving.slots,
            )
        }
    server: Any = Server
    bound = server.options(
        name=NAME,
        # the replica itself refuses what is too much, with the right status and shape
        max_ongoing_requests=serving.slots + 4 * serving.max_queue + 100,
        graceful_shutdown_timeout_s=serving.drain_timeout_s,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": environment},
        },
        **options,
    )
    return bound.bind(config, key_file, cpus)


def run(config: ServeConfig, dry_run: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        AiftError: the settings are wrong, or the replicas don't start.
    """
    opening.check(config, False)
    key_file = None if config.serving.no_auth else config.serving.api_key_file
    if key_file:
        keys.Keys(Path(key_file))
    _check_port(config.serving.host, config.serving.port)
    if dry_run:
        _show(config, key_file, None)
        return
    made = None
    if not config.serving.no_auth and not key_file:
        key_file = str(_key_folder() / f"key-{secrets.token_hex(4)}")
        made = keys.make(Path(key_file))
    try:
        with workers.cluster() as resources:
            _serve(config, key_file, made, resources)
    finally:
        if made and key_file:
            Path(key_file).unlink(missing_ok=True)


def _serve(
    config: ServeConfig,
    key_file: str | None,
    made: str | None,
    resources: dict[str, float],
) -> None:
    serving, stop = config.serving, threading.Event()
    # Ray sets handlers of its own when it starts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options = HTTPOptions(host=serving.host, port=serving.port)
    try:
        serve.start(http_options=options, logging_config={"log_level": "WARNING"})
        application = deployment(config, key_file, resources)
        serve.run(application, name=NAME, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise AiftError(f"the server could not be started: {error}") from error
    _show(config, key_file, made)
    print(f"ready on http://{_shown(serving.host)}:{serving.port}", flush=True)
    stop.wait()
    print("stopping after the answers under way", flush=True)
    # the replicas end their answers first; shutdown alone would stop the proxy in their midst
    serve.delete(NAME)
    serve.shutdown()


def _show(config: ServeConfig, key_file: str | None, made: str | None) -> None:
    key = f"one of {key_file}" if key_file else "one that is made at the start"
    if config.serving.no_auth:
        key = "none is asked for"
    rows = [
        ("model", config.name()),
        ("adapters", ", ".join(config.adapter_folders()) or "none"),
        ("replicas", str(config.serving.num_replicas)),
        ("API key", key),
    ]
    display.table("server", rows)
    if made:
        print(f"the key, shown this once: {made}")


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = f"{host}:{port} can't be listened on: {error.strerror}"
            raise ConfigError([Problem("serving.port", what, "give another --port")]) from None


def _key_folder() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "aift_ray"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
