"""How much memory keys and values of running requests may take, and what running out of it is."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from aift_ray.errors import ConfigError, Problem
from aift_ray.serving.engines.transformers.kv_cache import AHEAD, RowsCache

# of what is free on the device when the weights are loaded; the rest is for what a step computes
_SHARE = 0.85
# and at least that much of it, for prompts that are read
_WORKING = 512 * 2**20
# of a machine's memory, which other processes use too
_HOST_SHARE = 0.5
# fewer tokens are no conversation
_LEAST = 64
_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


def token_bytes(model: PreTrainedModel) -> int:
    """Bytes of a token's keys and values, measured with one token."""
    cache, run = RowsCache(model.config), model
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        made: Any = run
        made(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache.bytes_of_a_column


def budget(model: PreTrainedModel, given: int | None, prefix_memory: int) -> int:
    """Tokens whose keys and values may be held at once, padding included.

    Args:
        given: bytes, of the settings; None: what the device has left.
        prefix_memory: bytes of the prefix cache.

    Raises:
        ConfigError: they are too few for any request.
    """
    token = max(1, token_bytes(model))
    memory = given if given is not None else _left(model.device, prefix_memory)
    tokens = memory // token
    if tokens < AHEAD + _LEAST:
        there = f"{memory / 2**20:,.0f} MiB"
        need = f"{(AHEAD + _LEAST) * token / 2**20:,.0f}MiB"
        if given is not None:
            what = f"{there} hold {tokens} tokens, of {token:,} bytes each"
            remedy = f"give at least {need}"
        else:
            what = f"beside the weights {there} are left for keys and values, of {need} at least"
            remedy = "use --load-in 4bit, less --serving.prefix_memory, or a larger device"
        raise ConfigError([Problem("serving.kv_cache_memory", what, remedy)])
    return int(tokens)


def _left(device: torch.device, prefix_memory: int) -> int:
    if device.type != "cuda":
        # what is kept of earlier requests is in the other half
        return int(psutil.virtual_memory().available * _HOST_SHARE)
    free = torch.cuda.mem_get_info(device)[0]
    # what torch holds and does not use is free too
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = max(0, min(int(_SHARE * free), free - _WORKING))
    return room - min(prefix_memory, room // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the host, is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
