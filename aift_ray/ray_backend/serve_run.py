"""The command that serves: Serve starts while the model is looked at, then the replicas."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from aift_ray.config import ServeConfig
from aift_ray.errors import AiftError, ConfigError, Problem
from aift_ray.ray_backend import cluster, serve_ingress
from aift_ray.ray_backend.serve_options import CLUSTER, NAME, http_options, key_file
from aift_ray.runs import server_key, terminal
from aift_ray.serving import api_keys
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
    if dry_run:
        config, engine = _checked(config)
        _show(config, path, None, engine)
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
    with cluster.cluster(variables) as resources, ThreadPoolExecutor(1) as pool:
        # Ray sets handlers of its own when it starts
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        # not beside Ray's own start, which has half a minute however busy the machine is
        tell("checking the model")
        started = pool.submit(_start, config)
        config, _ = _checked(config)
        from aift_ray.ray_backend import serve_app

        tell("the model is checked")
        started.result()
        tell("loading the model in the replicas")
        application = serve_app.deployment(config, path, resources)
        try:
            serve.run(application, name=NAME, route_prefix="/", blocking=False)
        except RuntimeError as error:
            raise AiftError(f"the server could not be started: {error}") from error
        # and Serve too
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        _show(config, path, made, serve_app.engine_of(config, resources))
        serving_ = config.serving
        print(f"ready on http://{_shown(serving_.host)}:{serving_.port}", flush=True)
        stop.wait()
        print("stopping after the answers under way", flush=True)
        # the replicas end their answers first; shutdown alone would stop the proxy in their midst
        serve.delete(NAME)
        # with a Ray of this machine all of Serve ends; its own end would be told as a failed task
        if os.environ.get("RAY_ADDRESS"):
            serve.shutdown()


def _start(config: ServeConfig) -> None:
    """Start Serve's controller and its proxies."""
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        serve.start(http_options=http_options(config), logging_config={"log_level": "WARNING"})
    except RuntimeError as error:
        raise AiftError(f"the server could not be started: {error}") from error


def _checked(config: ServeConfig) -> tuple[ServeConfig, Choice]:
    """The settings, on the base of an adapter, and the engine, once every folder is looked at.

    Raises:
        UserError: what keeps them from being served.
    """
    with gc_pause.later():
        # torch and transformers
        from aift_ray.ray_backend.replica_gpus import gpus_here, gpus_of
        from aift_ray.runs import unknown_families
        from aift_ray.serving import startup
        from aift_ray.utils.quiet import quiet

        quiet()
        config = startup.on_base(config)
        checked = startup.check(config, gpus_of(config, gpus_here()) > 0)
    unknown_families.measure_served(config, checked.engine)
    return config, checked.engine


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
            raise ConfigError([Problem("serving.port", what, "give another --port")]) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
