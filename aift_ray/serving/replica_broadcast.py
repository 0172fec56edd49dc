"""What the replicas of a server do together: one set of adapters, one answer of figures."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from aift_ray.errors import Problem
from aift_ray.serving import server_metrics
from aift_ray.serving.adapter_record import AdapterRecord, record, same_name
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.openai_requests import LoadAdapterRequest, UnloadAdapterRequest
from aift_ray.serving.service import Service


class Fleet(Protocol):
    """All replicas, as one of them reaches them."""

    async def everywhere(self, method: str, *args: object) -> list[Any]:
        """What a method of each replica's Service answers."""

    async def recorded(self) -> dict[str, AdapterRecord]:
        """The adapters that every replica has to have, by name."""

    async def record(self, name: str, wanted: AdapterRecord | None) -> None:
        """Tell replicas that are yet to start of an adapter; None: no more of it."""


async def figures(fleet: Fleet) -> bytes:
    """`GET /metrics`."""
    return server_metrics.exposition(await fleet.everywhere("families"))


async def load(
    service: Service, fleet: Fleet, folder: str | None, body: LoadAdapterRequest
) -> dict[str, Any]:
    """`POST /v1/load_lora_adapter`: on every replica, or on none.

    Args:
        folder: of the adapters that may be loaded.
    """
    name = same_name(body.lora_name)
    found = _find(folder, name)
    if name == service.name or name in await fleet.recorded():
        message = f"{name} is loaded already; to load it again, unload it first"
        raise ApiError(400, message, "lora_name")
    problems = await asyncio.to_thread(service.check_adapter, name, found)
    if not problems:
        problems = await _load(fleet, name, found)
    if problems:
        told = [
            f"{each.where}: {each.what}" + (f" ({each.remedy})" if each.remedy else "")
            for each in problems
        ]
        raise ApiError(400, "; ".join(told), "lora_name")
    return {"id": name, "object": "model", "created": service.created, "owned_by": "aift-ray"}


async def unload(service: Service, fleet: Fleet, body: UnloadAdapterRequest) -> dict[str, Any]:
    """`POST /v1/unload_lora_adapter`: answers once no request uses it any more."""
    name = same_name(body.lora_name)
    if name not in await fleet.recorded():
        message = f"no adapter {body.lora_name!r} is loaded"
        raise ApiError(404, message, "lora_name", "model_not_found")
    await _forget(fleet, name)
    return {"id": name, "object": "model", "deleted": True}


async def _load(fleet: Fleet, name: str, folder: str) -> list[Problem]:
    """Load an adapter on every replica; where one can't, it is forgotten on all of them."""
    try:
        wanted = await asyncio.to_thread(record, folder)
    except OSError as error:
        return [Problem(f"adapter {name}", f"{error.filename} can't be read: {error.strerror}")]
    loaded = False
    await fleet.record(name, wanted)
    try:
        problems: list[Problem] = max(await fleet.everywhere("load_adapter", name, wanted), key=len)
        loaded = not problems
    finally:
        if not loaded:
            await _forget(fleet, name)
    return problems


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
    with suppress(OSError):
        # the folder itself may be gone by now
        for each in Path(folder).iterdir():
            if same_name(each.name) == name and each.is_dir():
                return str(each)
    message = f"the server's folder of adapters holds no {name!r}"
    raise ApiError(404, message, "lora_name", "model_not_found")
