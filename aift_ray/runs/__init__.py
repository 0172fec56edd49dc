"""What a run is, without Ray: prepared, placed, shown, supervised, resumed."""

# before anything imports bitsandbytes, which logs while it is loading
import aift_ray.models  # noqa: F401
