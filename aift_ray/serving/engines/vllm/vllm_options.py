"""From the settings of a server to vLLM's arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from aift_ray.config import ServeConfig, VllmConfig
from aift_ray.config.section import memory_bytes
from aift_ray.models.hub import load_config
from aift_ray.models.scaled_rope import scaling_of

# of an adapter that comes while the server runs, unless told otherwise
_LATER_RANK, _LATER = 64, 4
_MOST_AT_ONCE = 16
_CPU_CACHE = 4 * 2**30
# tokens to a block of keys on a CPU, and a block that vLLM keeps for itself
_CPU_BLOCK = 128


def options(
    config: ServeConfig,
    location: str,
    dtype: torch.dtype,
    device: torch.device,
    adapters: Mapping[str, str],
) -> dict[str, Any]:
    """AsyncEngineArgs by name.

    Args:
        location: of the base.
        adapters: folders of those that are there from the start.
    """
    own = config.vllm
    found: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        # -1: the longest that the memory holds, up to the model's own
        "max_model_len": own.max_model_len or -1,
        "gpu_memory_utilization": own.gpu_memory_utilization,
        "tensor_parallel_size": own.tensor_parallel_size,
        "enforce_eager": own.enforce_eager,
    }
    if scaling_of(location):
        text: Any = load_config(location)
        changed = ("rope_parameters", "max_position_embeddings")
        found["hf_overrides"] = {name: getattr(text, name) for name in changed}
    if own.kv_cache_memory:
        found["kv_cache_memory_bytes"] = memory_bytes(own.kv_cache_memory)
    elif device.type == "cpu":
        found["kv_cache_memory_bytes"] = cpu_cache(
            location, dtype, config.serving.slots, own.max_model_len
        )
    if config.load_in:
        found |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    if adapters or config.serving.adapter_folder:
        found |= _lora(own, adapters.values(), config.serving.adapter_folder)
    return found


def _lora(own: VllmConfig, folders: Iterable[str], shelf: str | None) -> dict[str, Any]:
    ranks = [_rank(Path(folder)) for folder in folders]
    later = (
        [_rank(path.parent) for path in Path(shelf).glob("*/adapter_config.json")] if shelf else []
    )
    rank = max([*ranks, *later, _LATER_RANK if shelf else 1])
    allowed = get_args(get_args(VllmConfig.model_fields["max_lora_rank"].annotation)[0])
    at_once = min(len(ranks) + (_LATER if shelf else 0), _MOST_AT_ONCE)
    return {
        "enable_lora": True,
        "max_lora_rank": own.max_lora_rank
        or min((each for each in allowed if each >= rank), default=max(allowed)),
        "max_loras": own.max_loras or at_once,
        # those that are not in use wait in the host's memory
        "max_cpu_loras": max(own.max_loras or at_once, len(ranks), 2 * _MOST_AT_ONCE),
    }


def _rank(folder: Path) -> int:
    """The largest rank of an adapter; 1 where its file says none."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1


def cpu_cache(location: str, dtype: torch.dtype, slots: int, length: int | None) -> int:
    """Bytes of `cache_bytes`, at most 4 GiB."""
    return min(cache_bytes(location, dtype, slots, length), _CPU_CACHE)


def cache_bytes(location: str, dtype: torch.dtype, slots: int, length: int | None) -> int:
    """Bytes for every slot's keys and values at full length.

    Args:
        length: of a prompt and its answer; None: as long as the model takes.
    """
    model: Any = load_config(location).get_text_config(decoder=True)
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    token = 2 * model.num_hidden_layers * heads * size * dtype.itemsize
    longest: Any = getattr(model, "max_position_embeddings", 2048)
    blocks = slots * -(-int(length or longest) // _CPU_BLOCK) + 2
    return int(blocks * _CPU_BLOCK * token)
