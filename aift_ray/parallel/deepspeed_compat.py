"""DeepSpeed, which this file alone imports, and private interfaces of its ZeRO optimizers.

Those were read from deepspeed 0.19.8. `zero` is the optimizer of an engine: of stage 1 and 2, or of
stage 3. Missing: an engine clips, drops and restores in its own order alone, and tells neither the
norm before clipping nor which tensors hold its partitions. Of torch 2.13: where an extension is
compiled; the public root lacks the folder of a Python version.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer


def library(device: torch.device) -> Any:
    """DeepSpeed, set for this process's device; nothing is compiled."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # its launcher would set it
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    if shutil.which("ninja") is None:
        # torch calls it by its name alone, and it may be beside this interpreter
        folders = os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")
        os.environ["PATH"] = os.pathsep.join(folders)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # its messages by shared memory take a minute to compile
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def compile_async_io() -> None:
    """Compile what keeps tensors in files where that is still to be done, by one process at a time.

    The lock of torch stays where a process was killed while it compiled, and all others would wait
    for it without an end: one that exists while this process alone may compile is removed.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    folders = [Path(_get_build_directory(name, False)) for name in ("pin_memory", "async_io")]
    with (folders[-1] / "compiling").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for folder in folders:
            (folder / "lock").unlink(missing_ok=True)
        get_accelerator().create_op_builder("AsyncIOBuilder").load(verbose=False)


def partition(parts: Iterable[nn.Module], config: dict[str, Any]) -> None:
    """Leave of the weights of each module in turn this worker's partitions, as `zero.Init` does.

    The engine that is made later takes them as they are.
    """
    import deepspeed

    first: Any = None
    for part in parts:
        weights = [weight for weight in part.parameters() if not hasattr(weight, "ds_id")]
        if first is not None:
            first.convert_to_zero_parameters(param_list=weights)
        elif weights:
            deepspeed.zero.Init(module=part, config_dict_or_path=config)
            first = weights[0]


def whole_partitioned(weight: torch.Tensor) -> torch.Tensor:
    """A copy of all of a weight of stage 3; every worker must call this alike."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()


def release_after_forward(module: nn.Module, model: nn.Module, zero: ZeROOptimizer) -> None:
    """Release after a forward pass alone what stage 3 has fetched for a backward pass.

    Such weights can't be gathered: a checkpoint after an evaluation would fail.

    Args:
        module: what computes a loss.
        model: the part of it that generates answers.
    """
    inside = False

    def begin(*_: object) -> None:
        nonlocal inside
        inside = True

    def end(ended: nn.Module, *_: object) -> None:
        nonlocal inside
        inside = inside and ended is not module
        if not inside and not torch.is_grad_enabled():
            zero.empty_partition_cache()

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)
    model.register_forward_hook(end)


def gradient_norm(zero: ZeROOptimizer, stage: int) -> torch.Tensor:
    """The norm of all gradients before clipping, ()."""
    if stage < 3:
        return torch.as_tensor(zero.scaled_global_norm())
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norm: torch.Tensor = combine_grad_norm_groups(zero._get_norm_groups())
    return norm


def drop_partitioned_gradients(zero: ZeROOptimizer, stage: int) -> None:
    """Drop the gradients of the partitions, which a step that is left out would keep."""
    if stage == 3:
        zero.averaged_gradients = {}
        return
    zero.micro_step_id = -1
    for kind in (zero.averaged_gradients, zero.all_grad_tensors):
        for group in kind:
            kind[group] = None


def link_moments(zero: ZeROOptimizer, stage: int) -> None:
    """Have stages 1 and 2 know where the moments of each weight are.

    They do so after the step of the first group of weights, when others have none yet.
    """
    if stage < 3:
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def partitions(zero: object, stage: int) -> list[torch.Tensor]:
    """This worker's partitions of all trained weights."""
    name = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    return list(getattr(zero, name))


@contextmanager
def in_memory(zero: ZeROOptimizer, stage: int, number: int) -> Iterator[None]:
    """A time in which a partition that lies in a file is in memory; it is written after that."""
    swapped = stage == 3 and zero._swappable_optimizer_subgroup(number)
    if swapped:
        zero._optimizer_states_and_gradient_swap_in(number)
    yield
    if swapped:
        zero._optimizer_states_and_gradient_swap_out(number)
