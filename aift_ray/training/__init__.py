"""The documented trainers and the quantizer: thin fronts, one a file."""

from aift_ray.utils.process_state import environment_kept

# Ray reads its settings from the environment: a run sets them for as long as it lasts
with environment_kept():
    import aift_ray.launch  # noqa: F401
