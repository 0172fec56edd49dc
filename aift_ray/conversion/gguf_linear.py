"""The linear attention of Qwen 3.5 as llama.cpp computes it.

Heads of values go with those of keys in turn there (k0 k1 k0 k1), in transformers in groups
(k0 k0 k1 k1); decay rates are stored as they act, not as logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

_WITHIN = "linear_attn."


def renamed(name: str) -> str:
    """The name by which the `gguf` package knows a weight."""
    return name.replace(".linear_attn.dt_bias", ".linear_attn.dt_proj.bias")


def change(name: str, config: PreTrainedConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What becomes of a weight; None: it stays.

    Args:
        name: as in transformers.
    """
    _, inside, own = name.partition(_WITHIN)
    if not inside or own.startswith("norm"):
        return None
    keys = 2 * config.linear_key_head_dim * config.linear_num_key_heads
    width = config.linear_value_head_dim
    if own == "A_log":
        return lambda weight: -in_turn(weight.float(), 0, 1, config).exp()
    if own.startswith(("in_proj_a", "in_proj_b", "dt_bias")):
        return lambda weight: in_turn(weight, 0, 1, config)
    if own.startswith("in_proj_z"):
        return lambda weight: in_turn(weight, 0, width, config)
    if own.startswith("in_proj_qkv"):
        return lambda weight: _behind(weight, keys, width, config)
    if own.startswith("conv1d"):
        return lambda weight: _behind(weight.squeeze(1), keys, width, config)
    if own.startswith("out_proj"):
        return lambda weight: in_turn(weight, 1, width, config)
    return None


def _behind(weight: torch.Tensor, keys: int, width: int, config: PreTrainedConfig) -> torch.Tensor:
    """Rows of queries and keys stay, those of values after them are put in turn."""
    return torch.cat([weight[:keys], in_turn(weight[keys:], 0, width, config)])


def in_turn(weight: torch.Tensor, dim: int, width: int, config: PreTrainedConfig) -> torch.Tensor:
    """Heads of values, of `width` each, in turn over the heads of keys."""
    heads = config.linear_num_key_heads
    shape: Sequence[int] = weight.shape
    parts = (heads, config.linear_num_value_heads // heads, width)
    apart = weight.reshape(*shape[:dim], *parts, *shape[dim + 1 :])
    return apart.swapaxes(dim, dim + 1).reshape(shape)


def write(writer: GGUFWriter, config: PreTrainedConfig, sections: Sequence[int]) -> None:
    """Add the numbers of linear attention and of rotations in sections."""
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(FULL_EVERY)
    writer.add_rope_dimension_sections([*sections, 0])


# one layer in so many has full attention
FULL_EVERY = 4
