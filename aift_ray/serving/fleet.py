"""What the replicas of a server do together: one set of adapters, one answer of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from aift_ray.serving import metrics
from aift_ray.serving.failures import ApiError
from aift_ray.serving.protocol import LoadAdapterRequest, UnloadAdapterRequest
from aift_ray.serving.service import Service


class Fleet(Protocol):
    """All replicas, as one of them reaches them."""

    async def everywhere(self, method: str, *args: Any) -> list[Any]:
        """What a method of each replica's Service answers."""

    async def record(self, name: str, folder: str | None) -> None:
        """Tell replicas that are yet to start of an adapter; None: no more of it."""


async def figures(fleet: Fleet) -> bytes:
    """`GET /metrics`."""
    return metrics.exposition(await fleet.everywhere("families"))


async def load(
    service: Service, fleet: Fleet, folder: str | None, body: LoadAdapterRequest
) -> dict[str, Any]:
    """`POST /v1/load_lora_adapter`: on every replica, or on none.

    Args:
        folder: of the adapters that may be loaded.
    """
    name, found = body.lora_name, _find(folder, body.lora_name)
    if name == service.name or name in service.adapters:
        raise ApiError(400, f"{name} is loaded already", "lora_name")
    await fleet.record(name, found)
    problems = max(await fleet.everywhere("load_adapter", name, found), key=len)
    if problems:
        await _forget(fleet, name)
        message = "; ".join(f"{each.where} {each.what}" for each in problems)
        raise ApiError(400, message, "lora_name")
    return {"id": name, "object": "model", "created": service.created, "owned_by": "aift-ray"}


async def unload(service: Service, fleet: Fleet, body: UnloadAdapterRequest) -> dict[str, Any]:
    """`POST /v1/unload_lora_adapter`: answers once no request uses it any more."""
    if body.lora_name not in service.adapters:
        message = f"no adapter {body.lora_name!r} is loaded"
        raise ApiError(404, message, "lora_name", "model_not_found")
    await _forget(fleet, body.lora_name)
    return {"id": body.lora_name, "object": "model", "deleted": True}


async def _forget(fleet: Fleet, name: str) -> None:
    await fleet.record(name, None)
    await fleet.everywhere("unload_adapter", name)


def _find(folder: str | None, name: str) -> str:
    """The folder of an adapter; the name is compared with what is there, it is no path."""
    if folder is None:
        message = "no adapters can be loaded: the server has no serving.adapter_folder"
        raise ApiError(404, message, "lora_name")
    if "/" in name or "\\" in name or name.startswith("."):
        raise ApiError(400, "give the adapter's name, not a path", "lora_name")
    for each in Path(folder).iterdir():
        if each.name == name and each.is_dir():
            return str(each)
    message = f"the server's folder of adapters holds no {name!r}"
    raise ApiError(404, message, "lora_name", "model_not_found")
