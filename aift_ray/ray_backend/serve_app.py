"""A server on Ray Serve: its replicas and their autoscaling."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig

from aift_ray import commandline
from aift_ray.config import ServeConfig
from aift_ray.errors import ConfigError, Problem, UserError
from aift_ray.models.model_location import resolve
from aift_ray.ray_backend import server_start
from aift_ray.ray_backend.replica_gpus import gpus_of
from aift_ray.ray_backend.serve_options import NAME, key_file
from aift_ray.ray_backend.serve_replicas import Replicas, shelves, takes_adapters
from aift_ray.ray_backend.server_start import ServerStart
from aift_ray.runs import worker_env
from aift_ray.serving import api_keys, served_models
from aift_ray.utils import gc_pause

if TYPE_CHECKING:
    from aift_ray.serving.engines import engine_select

_SWITCH_S = 2e-4
# the routes never block, so that they need no event loop beside Serve's own: a thread less on a
# token's way
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


@serve.deployment
@serve.ingress()
class Server:
    """One replica.

    Args:
        key_file: None: nobody is asked for a key.
        start: of the server; None: no command waits for it.
    """

    def __init__(
        self,
        config: ServeConfig,
        key_file: str | None,
        threads: int,
        passed: worker_env.Secrets,
        start: ServerStart | None,
    ) -> None:
        os.environ.update(passed.values)
        with gc_pause.later():
            import torch

            from aift_ray.utils.quiet import quiet

            quiet()
            torch.set_num_threads(threads)
            self._checked = server_start.checked(config, bool(ray.get_gpu_ids()), start)
        self._start = start
        # a token passes through several threads; each would wait 5 ms for the engine's to let go
        sys.setswitchinterval(_SWITCH_S)
        self._keys = api_keys.Keys(Path(key_file)) if key_file else None
        self._fleet = Replicas(takes_adapters(config))
        self._service: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from aift_ray.serving.http.app import build
        from aift_ray.serving.http.proxy_cors import Outside

        folder = self._checked.config.serving.adapter_folder
        outside = Outside.of(self._checked.config.serving)
        return build(lambda: self._service, self._fleet, folder, self._keys, self._open, outside)

    async def _open(self) -> None:
        from aift_ray.serving import startup

        wanted = await self._fleet.recorded()
        replica = serve.get_replica_context().replica_tag
        try:
            self._service = await startup.start(self._checked, wanted, replica)
        except UserError as error:
            # damaged weights
            if self._start:
                self._start.refused(error)
            raise

    async def perform(self, method: str, *args: object) -> Any:
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
    from aift_ray.models import base_and_adapter
    from aift_ray.runs import unknown_families

    given = commandline.validated(arguments, ServeConfig)
    config = served_models.on_base(given)
    if config is not given:
        # an adapter, which no command checks here
        base_and_adapter.find_place(given.model)
    if not config.serving.api_key_file and not config.serving.no_auth:
        remedy = "give serving.api_key_file"
        raise ConfigError([Problem("serving.api_key_file", "is needed here", remedy)])
    resources = ray.cluster_resources()
    unknown_families.measure_served(config, engine_of(config, resources))
    return deployment(config, key_file(config), resources)


def deployment(
    config: ServeConfig,
    keys_at: str | None,
    resources: dict[str, float],
    start: ServerStart | None = None,
) -> Any:
    """The application for `serve.run`.

    Args:
        start: of the server, where a command waits for it.

    Raises:
        ConfigError: the cluster has too few CPUs, or too few GPUs.
        ModelError: a file of an adapter can't be read.
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
    environment = worker_env.environment() | _ONE_LOOP | _threads(config, cpus)
    if gpus and config.engine == "transformers":
        environment |= worker_env.on_gpus(offload=False)
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
        deployment_actors=shelves(config),
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": environment},
        },
        **options,
    )
    return bound.bind(config, keys_at, cpus, worker_env.secrets(), start)


def _threads(config: ServeConfig, number: int) -> dict[str, str]:
    """What a replica's OpenMP is told; vLLM has threads of its own."""
    told = {"OMP_NUM_THREADS": str(number)}
    return told | worker_env.waiting() if config.engine == "transformers" else told


def engine_of(config: ServeConfig, resources: dict[str, float]) -> engine_select.Choice:
    """The engine of the replicas on a cluster.

    Raises:
        ConfigError: what is asked of it, it can't do.
    """
    from aift_ray.serving.engines import engine_select

    return engine_select.made(config, resolve(config.model), gpus_of(config, resources) > 0)
