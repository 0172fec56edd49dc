"""The replicas of a deployment on Ray Serve, as one of them reaches the others."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import DeploymentActorConfig

from aift_ray.config import ServeConfig
from aift_ray.ray_backend.adapter_registry import AdapterRegistry
from aift_ray.serving import served_models
from aift_ray.serving.adapter_record import AdapterRecord

_NAME = "adapters"


def takes_adapters(config: ServeConfig) -> bool:
    """Whether a server can ever have adapters."""
    return bool(config.adapters or config.serving.adapter_folder)


def shelves(config: ServeConfig) -> list[DeploymentActorConfig] | None:
    """The registry of a deployment's adapters, for which its replicas wait; None: needs none.

    Raises:
        ModelError: a file of an adapter can't be read.
    """
    if not takes_adapters(config):
        return None
    adapters = served_models.recorded(config)
    return [DeploymentActorConfig(name=_NAME, actor_class=AdapterRegistry, init_args=(adapters,))]


class Replicas:
    """The Fleet of a replica; each replica's `perform` calls a method of its Service.

    Args:
        takes_adapters: whether there is a registry of adapters.
    """

    def __init__(self, takes_adapters: bool) -> None:
        self._takes_adapters = takes_adapters

    async def recorded(self) -> dict[str, AdapterRecord]:
        """The adapters that every replica has to have, by name."""
        if not self._takes_adapters:
            return {}
        shelf_ = serve.get_deployment_actor(_NAME)
        found: dict[str, AdapterRecord] = await shelf_.adapters.remote()
        return found

    async def record(self, name: str, wanted: AdapterRecord | None) -> None:
        """Tell replicas that are yet to start of an adapter; None: no more of it."""
        await serve.get_deployment_actor(_NAME).put.remote(name, wanted)

    async def everywhere(self, method: str, *args: object) -> list[Any]:
        """What a method of each replica's Service answers; dead replicas answer nothing."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        response = handle.broadcast("perform", method, *args)
        answers = await response.results_async(return_exceptions=True)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, RayActorError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, Exception)]
