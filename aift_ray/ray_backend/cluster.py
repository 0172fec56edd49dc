"""The cluster to run on: that of RAY_ADDRESS, else one of this machine for as long as it is used.

Nothing here needs torch, or more of Ray than its core.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from aift_ray.engine.run_errors import short
from aift_ray.errors import ConfigError, Problem, TrainingError
from aift_ray.ray_backend import reaper
from aift_ray.ray_backend.local_token import own_token
from aift_ray.runs import ray_sessions

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+")


@contextmanager
def cluster(variables: Mapping[str, str] | None = None) -> Iterator[dict[str, float]]:
    """A cluster to run on, and its resources: that of RAY_ADDRESS, else one of this machine.

    Args:
        variables: environment of all processes of a cluster that is started here, where they are
            not set already.

    Raises:
        ConfigError: the cluster of RAY_ADDRESS can't be reached.
    """
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if not address:
            folder = stack.enter_context(own_token())
            stack.enter_context(reaper.watched(folder))
        stack.callback(ray.shutdown)
        with _environment({} if address else variables or {}):
            session = _connect(address)
        if not address:
            ray_sessions.mark(session)
        yield ray.cluster_resources()


@contextmanager
def starting_cluster(
    variables: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], dict[str, float]]]:
    """The same, while the caller does something else.

    Yields:
        what waits until it has started, and gives the resources; or raises as `cluster` does.
    """
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        try:
            yield pool.submit(stack.enter_context, cluster(variables)).result
        finally:
            # a driver that another thread started would end 20 s later
            pool.submit(stack.close).result()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _connect(address: str | None) -> Path:
    """Join a cluster, or start one; the folder of its session."""
    try:
        if address and _HOST_AND_PORT.fullmatch(address):
            # Ray itself would try for a minute
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=5).close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without "local", Ray would join whatever cluster was last started on this machine
            context = ray.init(
                address or "local",
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=None if address else False,
            )
            return Path(context.address_info["session_dir"])
    except Exception as error:
        # where a server of it does not start in time, Ray raises no narrower kind
        if address is None:
            raise TrainingError(f"Ray could not be started: {short(error)}") from error
        remedy = "check that the cluster runs, and that ~/.ray/auth_token is the cluster's"
        problem = Problem(f"RAY_ADDRESS {address}", f"can't be reached: {short(error)}", remedy)
        raise ConfigError([problem]) from error
