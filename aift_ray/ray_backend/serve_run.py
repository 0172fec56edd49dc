"""The command that serves: Ray and Serve, then the replicas, which check what they serve."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.config import ServeConfig
from aift_ray.errors import AiftError, ConfigError, ModelError, Problem
from aift_ray.ray_backend import cluster, serve_ingress
from aift_ray.ray_backend.replica_gpus import gpus_here, gpus_of
from aift_ray.ray_backend.serve_options import CLUSTER, NAME, key_file
from aift_ray.runs import server_key, terminal
from aift_ray.serving import api_keys, served_models
from aift_ray.utils import gc_pause

if TYPE_CHECKING:
    from aift_ray.serving.engines.engine_select import Choice


def run(config: ServeConfig, dry_run: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        AiftError: the settings are wrong, or the replicas don't start.
    """
    makes_key = not config.serving.no_auth and not config.serving.api_key_file
    if makes_key:
        server_key.check(config.serving.port)
    path = key_file(config)
    if path:
        api_keys.Keys(Path(path))
    _check_port(config.serving.host, config.serving.port)
    config = served_models.on_base(config)
    if not os.environ.get("RAY_ADDRESS"):
        # machines of a cluster may have what this one lacks
        served_models.check_reach(config)
    if config.dtype == "fp16":
        served_models.check_dtype(config, gpus_of(config, gpus_here()) > 0)
    if dry_run:
        _show(config, path, None, _checked(config))
        return
    made = None
    if makes_key:
        path, made = server_key.key(config.serving.port)
    _serve(config, path, made)


def _serve(config: ServeConfig, path: str | None, made: str | None) -> None:
    began, stop = time.monotonic(), threading.Event()

    def tell(what: str) -> None:
        print(f"{what} ({time.monotonic() - began:.0f} s)", flush=True)

    # what has been started ends with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tell("starting Ray and Serve")
    variables = CLUSTER | serve_ingress.trust(config.serving.forwarded_allow_ips)
    # takes as long as the start of Ray
    imported = threading.Thread(target=_import_serve, daemon=True)
    imported.start()
    with cluster.cluster(variables) as resources, ThreadPoolExecutor(1) as pool:
        # Ray sets handlers of its own when it starts
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        imported.join()
        started = pool.submit(_start, config)
        engine = _start_replicas(config, path, resources, started, tell)
        # and Serve too
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        _show(config, path, made, engine)
        serving_ = config.serving
        print(f"ready on http://{_shown(serving_.host)}:{serving_.port}", flush=True)
        stop.wait()
        print("stopping after the answers under way", flush=True)
        _stop()


def _stop() -> None:
    from ray import serve

    # the replicas end their answers first; shutdown alone would stop the proxy in their midst
    serve.delete(NAME)
    # with a Ray of this machine all of Serve ends; its own end would be told as a failed task
    if os.environ.get("RAY_ADDRESS"):
        serve.shutdown()


def _import_serve() -> None:
    from aift_ray.ray_backend import serve_app  # noqa: F401


def _start_replicas(
    config: ServeConfig,
    path: str | None,
    resources: dict[str, float],
    started: Future[None],
    tell: Callable[[str], None],
) -> Choice:
    """Wait until replicas answer; the engine of theirs.

    Args:
        started: done once Serve's proxies have started, beside which the replicas start.

    Raises:
        AiftError: the settings are wrong, or the replicas don't start.
    """
    from aift_ray.ray_backend import serve_app, server_start

    tell("checking the model")
    # GPUs that torch can't use
    gpus_of(config, gpus_here())
    engine = serve_app.engine_of(config, resources)
    start = server_start.ServerStart.begin()
    try:
        application = serve_app.deployment(config, path, resources, start)
    except ModelError:
        # with all else that is wrong
        _checked(config)
        raise
    server_start.wait_for_controller(started)
    try:
        server_start.run(application, start, tell)
    finally:
        # why the proxies did not start, if so, comes first
        started.result()
    return engine


def _start(config: ServeConfig) -> None:
    """Start Serve's controller and its proxies."""
    from ray import serve

    from aift_ray.ray_backend.serve_options import http_options

    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        serve.start(http_options=http_options(config), logging_config={"log_level": "WARNING"})
    except (RuntimeError, TimeoutError) as error:
        raise AiftError(f"the server could not be started: {error}") from error


def _checked(config: ServeConfig) -> Choice:
    """The engine, once every folder is looked at.

    Raises:
        UserError: what keeps them from being served.
    """
    with gc_pause.later():
        # torch and transformers
        from aift_ray.runs import unknown_families
        from aift_ray.serving import startup
        from aift_ray.utils.quiet import quiet

        quiet()
        checked = startup.check(config, gpus_of(config, gpus_here()) > 0)
    unknown_families.measure_served(config, checked.engine)
    return checked.engine


def _show(config: ServeConfig, path: str | None, made: str | None, engine: Choice) -> None:
    key = f"one of {path}" if path else "one that is made at the start"
    if config.serving.no_auth:
        key = "none is asked for"
    rows = [
        ("model", config.name()),
        ("adapters", ", ".join(config.adapter_folders()) or "none"),
        ("engine", f"{engine.engine} ({engine.why})"),
        ("replicas", str(config.serving.num_replicas)),
        ("API key", key),
    ]
    terminal.table("server", rows)
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
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                remedy = "give an address of this machine: --host 127.0.0.1, or 0.0.0.0 for all"
                raise ConfigError([Problem("serving.host", what, remedy)]) from None
            raise ConfigError([Problem("serving.port", what, "give another --port")]) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
