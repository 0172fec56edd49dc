"""From a command to what carries it out: this process, torchrun, or a Ray cluster."""

# settles what Ray reads from the environment, before anything imports ray
import aift_ray.ray_backend  # noqa: F401
