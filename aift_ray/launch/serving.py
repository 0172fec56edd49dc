"""A server on Ray Serve: replicas, their autoscaling, the command that starts and stops them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions

from aift_ray import commandline
from aift_ray.config import ServeConfig
from aift_ray.errors import AiftError, ConfigError, Problem
from aift_ray.launch import display, home, ingress, passing, workers
from aift_ray.launch.fleet import Replicas, shelf
from aift_ray.launch.reserving import gpus_here, gpus_of
from aift_ray.models import folders
from aift_ray.serving import choice, keys, opening

NAME = "aift-ray"
_SWITCH_S = 2e-4
# the routes never block, so that they need no event loop beside Serve's own: a thread less on a
# token's way
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
# what Ray's own processes read when they start
_CLUSTER = {
    # proxies take answers from replicas by gRPC, not as Ray's objects, in one event loop
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # a server is as important as what else runs beside it; Ray's own 15 lets all others go first
    "RAY_worker_niceness": "0",
    # how long the controller sleeps between two looks at its replicas; at Ray's own 0.1 it takes 3%
    # of a core from an engine that uses them all
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "aift_ray.launch.ingress:middlewares",
}
# beyond a request's own time; by then it has no replica
_MARGIN_S = 30.0


@serve.deployment
@serve.ingress()
class Server:
    """One replica.

    Args:
        key_file: None: nobody is asked for a key.
    """

    def __init__(
        self, config: ServeConfig, key_file: str | None, threads: int, passed: passing.Secrets
    ) -> None:
        import torch

        os.environ.update(passed.values)
        workers.quiet()
        torch.set_num_threads(threads)
        # a token passes through several threads; each would wait 5 ms for the engine's to let go
        sys.setswitchinterval(_SWITCH_S)
        self._keys = keys.Keys(Path(key_file)) if key_file else None
        self._checked = opening.check_base(config, bool(ray.get_gpu_ids()))
        self._fleet = Replicas()
        self._service: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from aift_ray.serving.application import build
        from aift_ray.serving.outside import Outside

        folder = self._checked.config.serving.adapter_folder
        outside = Outside.of(self._checked.config.serving)
        return build(lambda: self._service, self._fleet, folder, self._keys, self._open, outside)

    async def _open(self) -> None:
        wanted = await self._fleet.recorded()
        replica = serve.get_replica_context().replica_tag
        self._service = await opening.start(self._checked, wanted, replica)

    async def perform(self, method: str, *args: Any) -> Any:
        """What a method of the Service answers; other replicas ask."""
        return await getattr(self._service, method)(*args)

    async def check_health(self) -> None:
        """Raises where the engine is dead, so that Serve starts another replica."""
        if self._service is not None and not self._service.engine.alive():
            raise RuntimeError("the engine is stopped")


def build(arguments: dict[str, Any]) -> Any:
    """The application of a Serve config file, `import_path: aift_ray.launch.serving:build`.

    Args:
        arguments: settings by name, as in a file for `aift-ray serve --config`. The address is
            Serve's own (`http_options`); the key file has to be there on every node.

    Raises:
        UserError: the settings are wrong.
    """
    config = opening.on_base(commandline.validated(arguments, ServeConfig))
    if not config.serving.api_key_file and not config.serving.no_auth:
        remedy = "give serving.api_key_file"
        raise ConfigError([Problem("serving.api_key_file", "is needed here", remedy)])
    return deployment(config, key_file(config), ray.cluster_resources())


def deployment(config: ServeConfig, keys_at: str | None, resources: dict[str, float]) -> Any:
    """The application for `serve.run`.

    Raises:
        ConfigError: the cluster has too few CPUs, or too few GPUs.
    """
    serving, (least, most) = config.serving, config.replicas()
    gpus = gpus_of(config, resources)
    config = config.resolved(engine_of(config, resources).engine)
    has = int(resources.get("CPU", 1))
    cpus = serving.cpus_per_replica or (1 if gpus else max(1, has // most))
    if cpus * least > has:
        what = f"{least} replicas of {cpus} CPUs need {cpus * least}, the cluster has {has}"
        remedy = "lower --num-replicas or --serving.cpus_per_replica"
        raise ConfigError([Problem("serving.num_replicas", what, remedy)])
    environment = passing.environment() | _ONE_LOOP | _threads(config, cpus)
    if gpus and config.engine == "transformers":
        environment |= passing.on_gpus(offload=False)
    if not gpus:
        # Ray shows all GPUs of a machine to those that have asked for none
        environment["CUDA_VISIBLE_DEVICES"] = ""
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
        deployment_actors=[shelf(opening.recorded(config))],
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": environment},
        },
        **options,
    )
    return bound.bind(config, keys_at, cpus, passing.secrets())


def _threads(config: ServeConfig, number: int) -> dict[str, str]:
    """What a replica's OpenMP is told.

    Threads that spin while they wait for each other make a token take thirty times as long where
    another process has one of their CPUs; vLLM has threads of its own.
    """
    waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    told = {"OMP_NUM_THREADS": str(number)}
    return told | waiting if config.engine == "transformers" else told


def engine_of(config: ServeConfig, resources: dict[str, float]) -> choice.Choice:
    """The engine of the replicas on a cluster.

    Raises:
        ConfigError: what is asked of it, it can't do.
    """
    return choice.made(config, folders.resolve(config.model), gpus_of(config, resources) > 0)


def key_file(config: ServeConfig) -> str | None:
    """The file of API keys that the settings name, seen from anywhere."""
    named = config.serving.api_key_file
    return str(Path(named).expanduser().absolute()) if named else None


def http_options(config: ServeConfig) -> HTTPOptions:
    """Where the proxies listen."""
    serving = config.serving
    longest = serving.request_timeout_s + _MARGIN_S
    return HTTPOptions(host=serving.host, port=serving.port, request_timeout_s=longest)


def run(config: ServeConfig, dry_run: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        AiftError: the settings are wrong, or the replicas don't start.
    """
    workers.quiet()
    makes_key = not config.serving.no_auth and not config.serving.api_key_file
    if makes_key:
        home.check(config.serving.port)
    config = opening.on_base(config)
    opening.check(config, gpus_of(config, gpus_here()) > 0)
    path = key_file(config)
    if path:
        keys.Keys(Path(path))
    _check_port(config.serving.host, config.serving.port)
    if dry_run:
        _show(config, path, None, engine_of(config, gpus_here()))
        return
    made = None
    if makes_key:
        path, made = home.key(config.serving.port)
    with workers.cluster(_CLUSTER | ingress.trust(config.serving.forwarded_allow_ips)) as resources:
        _serve(config, path, made, resources)


def _serve(
    config: ServeConfig,
    path: str | None,
    made: str | None,
    resources: dict[str, float],
) -> None:
    serving, stop = config.serving, threading.Event()
    # Ray sets handlers of its own when it starts
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        serve.start(http_options=http_options(config), logging_config={"log_level": "WARNING"})
        application = deployment(config, path, resources)
        serve.run(application, name=NAME, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise AiftError(f"the server could not be started: {error}") from error
    _show(config, path, made, engine_of(config, resources))
    print(f"ready on http://{_shown(serving.host)}:{serving.port}", flush=True)
    stop.wait()
    print("stopping after the answers under way", flush=True)
    # the replicas end their answers first; shutdown alone would stop the proxy in their midst
    serve.delete(NAME)
    # with a Ray of this machine all of Serve ends; its own end would be told as a failed task
    if os.environ.get("RAY_ADDRESS"):
        serve.shutdown()


def _show(config: ServeConfig, path: str | None, made: str | None, engine: choice.Choice) -> None:
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


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
