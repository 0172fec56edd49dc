"""The documented import path of Serve's HTTP middlewares: `aift_ray.launch.ingress`."""

from aift_ray.ray_backend.serve_ingress import middlewares, middlewares_with_probe

__all__ = ["middlewares", "middlewares_with_probe"]
