"""The replicas of a deployment on Ray Serve, as one of them reaches the others."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import DeploymentActorConfig

_NAME = "adapters"


@ray.remote(num_cpus=0)
class Shelf:
    """Which adapters every replica has to have; lives as long as the deployment."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def folders(self) -> dict[str, str]:
        """The folder of each adapter."""
        return self._folders

    def put(self, name: str, folder: str | None) -> None:
        """Add an adapter; None: take it away."""
        if folder is None:
            self._folders.pop(name, None)
        else:
            self._folders[name] = folder


def shelf(folders: dict[str, str]) -> DeploymentActorConfig:
    """The shelf of a deployment that starts with these adapters."""
    return DeploymentActorConfig(name=_NAME, actor_class=Shelf, init_args=(folders,))


class Replicas:
    """The Fleet of a replica; each replica's `perform` calls a method of its Service."""

    async def folders(self) -> dict[str, str]:
        """The adapters that a replica has to have."""
        found: dict[str, str] = await serve.get_deployment_actor(_NAME).folders.remote()
        return found

    async def record(self, name: str, folder: str | None) -> None:
        """Tell replicas that are yet to start of an adapter; None: no more of it."""
        await serve.get_deployment_actor(_NAME).put.remote(name, folder)

    async def everywhere(self, method: str, *args: Any) -> list[Any]:
        """What a method of each replica's Service answers; dead replicas answer nothing."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        response = handle.broadcast("perform", method, *args)
        answers = await response.results_async(return_exceptions=True)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, RayActorError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, Exception)]
