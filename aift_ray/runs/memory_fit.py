"""Whether a run fits into the memory of its workers, by arithmetic, before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import psutil

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.model_stats import Measured
from aift_ray.planning.candidates import Candidate, Need, Room, candidates, choose, fitting, remedy
from aift_ray.planning.memory_estimate import GIB, Memory, memory, moments
from aift_ray.planning.model_shape import Shape
from aift_ray.planning.run_workload import Answers, answers_of, workload
from aift_ray.utils.host_memory import host_cpus

# what a worker on a CPU holds of libraries, and of each byte of its tokenizer's file; measured with
# torch 2.13 and transformers 5.23: hina-4m 0.5 GiB, gemma3-270m 0.7 GiB before its weights. One of
# several has Ray in its process besides
_LIBRARIES, _OF_TOKENIZER, _RAY = round(0.51 * GIB), 8, round(0.1 * GIB)
# the part of a card that what nobody asked for may fill: a plan is right to some percent
_UNASKED = 0.9


@dataclass(frozen=True)
class Host:
    """What counts where workers compute on CPUs: their memory is all of a process.

    Attributes:
        tokenizer: bytes of its file.
        targets: supervised tokens of a micro-batch at most.
        saves_beside: whether the run goes on while a checkpoint is written.
    """

    tokenizer: int
    targets: int
    saves_beside: bool = True


def needs(
    config: RunConfig,
    shape: Shape,
    tokens: int,
    workers: int,
    gpu: bool,
    whole: int,
    host: Host | None = None,
    answers: Answers | None = None,
) -> Need:
    """The memory of a worker by the way the model is spread.

    Args:
        shape: the model's numbers.
        tokens: of the longest micro-batch.
        whole: weights trained as a whole beside the adapters.
        answers: what an evaluation generates; None: of rows as long as the settings allow.
    """
    planned, wide = _on_gpus(config, gpu), width(config, gpu)
    held = None if planned else host
    answers = answers or answers_of(config, workers)
    process = _process(held, workers, config.reads_texts) if held else 0
    sizes = (shape, tokens, workers, wide, whole, answers, planned, process)
    beside = (held.targets, held.saves_beside) if held else ()

    def need(way: Candidate) -> Memory:
        return memory(shape, workload(config, way, *sizes, *beside))

    return need


def _process(host: Host, workers: int, reads_texts: bool) -> int:
    """Bytes that a worker's process needs beside the model."""
    tokenizer = _OF_TOKENIZER * host.tokenizer if reads_texts else 0
    return _LIBRARIES + tokenizer + (_RAY if workers > 1 else 0)


def _on_gpus(config: RunConfig, gpu: bool) -> bool:
    """Whether GPUs are planned for; memory given for them speaks of a run on them."""
    return gpu or config.parallel.gpu_memory is not None


def width(config: RunConfig, gpu: bool) -> int:
    """Bytes of a weight that is not trained."""
    planned = _on_gpus(config, gpu)
    narrow = planned if config.training.precision == "auto" else config.training.precision != "fp32"
    return 2 if narrow else 4


def settle(config: RunConfig, need: Need, workers: int, gpu: bool) -> list[str]:
    """Choose the strategy where it is `auto`; why, in two lines.

    Raises:
        ConfigError: the run does not fit into the memory of its workers; with what does.
    """
    parallel, method = config.parallel, config.trained_as
    why: list[str] = []
    if parallel.strategy == "model_parallel":
        # held against each device when its layers are laid out
        return why
    room = _room(config, workers, gpu)
    if parallel.strategy == "auto":
        offloads = gpu and config.objective != "grpo" and _offloads(config)
        among = candidates(method, workers, config.base_bits, offloads)
        way, why = choose(among, need, room)
        # validated as any other assignment
        parallel.strategy, parallel.offload = cast(Any, way.strategy), way.offload
    # a machine's memory is not for its workers alone: it chooses, and refuses nothing
    if not (gpu or parallel.gpu_memory):
        return why
    wanted = need(Candidate(method, parallel.strategy, parallel.offload))
    if not room.holds(wanted):
        raise ConfigError([_misfit(config, wanted, need, workers, room)])
    return why + _settle_saving(config, wanted, room)


def _settle_saving(config: RunConfig, wanted: Memory, room: Room) -> list[str]:
    """Write checkpoints without a copy where host memory does not hold one; why, in a line."""
    both = wanted.host + wanted.copied
    if not wanted.copied or room.host is None or both <= room.host:
        return []
    what = (
        f"the copy of a checkpoint takes {wanted.copied / GIB:.1f} GiB of host memory a worker"
        f"{f' beside {wanted.host / GIB:.1f}' if wanted.host else ''}, and there are "
        f"{room.host / GIB:.1f}"
    )
    if "async_save" in config.training.model_fields_set:
        raise ConfigError([Problem("training.async_save", what, "use --training.async_save false")])
    config.training.async_save = False
    return [f"training.async_save is off: {what}"]


def settle_cpus(config: RunConfig, workers: int) -> None:
    """Choose the CPUs of a worker where they are not given.

    With offload the norm of the gradients and the optimizer's step are computed in host memory;
    of a cluster elsewhere the machines are not known here.
    """
    if config.ray.cpus_per_worker is not None:
        return
    share = config.parallel.offload and "RAY_ADDRESS" not in os.environ
    config.ray.cpus_per_worker = float(max(1, host_cpus() // workers)) if share else 1.0


def own(config: RunConfig, need: Need) -> Memory:
    """The memory of a worker as the run is configured."""
    parallel = config.parallel
    return need(Candidate(config.trained_as, parallel.strategy, parallel.offload))


def holds_more(config: RunConfig, need: Need, workers: int, gpu: bool) -> bool:
    """Whether a worker is known to have room for a need that the user has not asked for."""
    room, wanted = _room(config, workers, gpu), own(config, need)
    if room.device is None or wanted.total > _UNASKED * room.device:
        return False
    return room.host is None or wanted.host + wanted.copied <= room.host


def _misfit(config: RunConfig, wanted: Memory, need: Need, workers: int, room: Room) -> Problem:
    sizes = {"the device": room.device, "the host": room.host}
    there = [f"{size / GIB:.1f} GiB on {where}" for where, size in sizes.items() if size]
    what = (
        f"{config.trained_as} training under {config.parallel.strategy} needs "
        f"{wanted.total / GIB:.1f} GiB a worker (computed: {wanted.parts}), "
        f"and there are {' and '.join(there)}"
    )
    how = _offloads(config), config.objective == "grpo", config.training.bf16_stochastic_round
    fits = fitting(config.trained_as, workers, need, room, *how)
    return Problem("parallel.strategy", what, f"what fits: {'; '.join(fits) or remedy(config)}")


def _offloads(config: RunConfig) -> bool:
    """Whether the optimizer's step can be taken in host memory."""
    training = config.training
    return training.optimizer == "adamw" and not training.bf16_stochastic_round


def _room(config: RunConfig, workers: int, gpu: bool) -> Room:
    """What a worker may use; of another machine only what the user has said is known."""
    given = config.parallel.gpu_bytes
    if "RAY_ADDRESS" in os.environ:
        return Room(given)
    # not what is free now: each process of a torchrun group must choose alike
    host = psutil.virtual_memory().total // workers
    if given is not None:
        # without GPUs it speaks of another machine
        return Room(given, host if gpu else None)
    if not gpu:
        return Room(host)
    import torch

    numbers = range(torch.cuda.device_count())
    sizes = [torch.cuda.get_device_properties(n).total_memory for n in numbers]
    return Room(min(sizes, default=None), host)


def sizes(config: RunConfig, model: Measured, adapter: int | None) -> tuple[int, int, int]:
    """Weights of the model, weights that are trained, bytes of a checkpoint; all computed.

    Args:
        adapter: weights of the saved adapter that the run starts from; None: it has new ones.
    """
    shape, trained = model.shape, model.shape.adapter_parameters(config.lora.r) + model.whole
    trained = trained if adapter is None else adapter
    if config.method == "full":
        trained = shape.parameters - shape.beside
    training = config.training
    # trained weights, in fp32 unless told otherwise, and their moments
    saved = trained * (2 if training.bf16_stochastic_round else 4)
    return shape.parameters, trained, saved + sum(moments(trained, training.optimizer))
