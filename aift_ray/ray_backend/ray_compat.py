"""Private interfaces of Ray's core, read from ray 2.60.0."""

from __future__ import annotations

from typing import Any

from ray import _raylet
from ray.experimental import internal_kv


def forget_token() -> None:
    """Have this process's Ray forget the token and the mode that it has read.

    Missing: a public way to take another token once one was read.
    """
    # compiled, without types
    raylet: Any = _raylet
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    raylet.Config.initialize("")


def has_dashboard() -> bool:
    """Whether the cluster that this process is connected to has a dashboard.

    Missing: `ray.init` alone tells its address, and the caller may not be who connected.
    """
    return bool(internal_kv._internal_kv_get("webui:url", namespace="dashboard"))


def worker_error(failure: object) -> Any:
    """What a worker raised, of what Ray Train makes of it.

    Missing: the exception that `UserCallback.after_exception` is given does not name it.
    """
    return getattr(failure, "_base_exc", failure)


_OURS = "aift_ray"


def keep(key: str, value: bytes) -> None:
    """Put a value into the store of the cluster that this process is connected to.

    Missing: a public store of a cluster that takes no process of its own, as an actor does.
    """
    internal_kv._internal_kv_put(key, value, namespace=_OURS)


def kept(key: str) -> bytes | None:
    """What the store of the cluster holds; None: nothing."""
    found: bytes | None = internal_kv._internal_kv_get(key, namespace=_OURS)
    return found


def forget(key: str) -> None:
    """Remove a value from the store of the cluster."""
    internal_kv._internal_kv_del(key, namespace=_OURS)
