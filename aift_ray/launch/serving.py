"""The documented import path of a Serve config file: `aift_ray.launch.serving:build`."""

from aift_ray.ray_backend.serve_app import build

__all__ = ["build"]
