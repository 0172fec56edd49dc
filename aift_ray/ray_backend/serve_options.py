"""What Ray and Serve are told when a server starts; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.config import ServeConfig

if TYPE_CHECKING:
    from ray.serve.config import HTTPOptions

NAME = "aift-ray"
# what Ray's own processes read when they start
CLUSTER = {
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


def key_file(config: ServeConfig) -> str | None:
    """The file of API keys that the settings name, seen from anywhere."""
    named = config.serving.api_key_file
    return str(Path(named).expanduser().absolute()) if named else None


def http_options(config: ServeConfig) -> HTTPOptions:
    """Where the proxies listen."""
    # takes seconds, in which Ray starts
    from ray.serve.config import HTTPOptions

    serving = config.serving
    longest = serving.request_timeout_s + _MARGIN_S
    return HTTPOptions(host=serving.host, port=serving.port, request_timeout_s=longest)
