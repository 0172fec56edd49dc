"""One process's share of a run: build, loop, loss, optimizer, evaluation, checkpoint, metrics."""

# before anything imports bitsandbytes, which logs while it is loading
import aift_ray.models  # noqa: F401
