"""How much memory a process with a user's code may hold."""

from __future__ import annotations

from aift_ray.config import GRPOConfig
from aift_ray.config.section import memory_bytes
from aift_ray.utils.host_memory import in_use

# of the machine's memory, where no limit is given
_SHARE = 0.5


def memory_limit(config: GRPOConfig) -> int:
    """Bytes of `grpo.reward_memory`, or half of what the machine has.

    A function that takes all memory would have the system end the training instead of itself.
    """
    if config.reward_memory is not None:
        return memory_bytes(config.reward_memory)
    return int(_SHARE * in_use()[1])
