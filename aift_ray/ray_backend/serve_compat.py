"""Private interfaces of Ray Serve, read from ray 2.60.0."""

from __future__ import annotations


def has_controller() -> bool:
    """Whether Serve's controller takes applications.

    Missing: `serve.start` waits for the proxies too, and `serve.run` without it would start a
    controller with other options.
    """
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def wait_for_proxies() -> None:
    """Wait until the proxies pass requests on to the applications that run.

    Missing: `serve.run` alone waits for that; it looks once a second, and does not tell why a
    replica fails before it has failed several times.
    """
    from ray.serve.context import _get_global_client

    _get_global_client().wait_for_proxies_serving()
