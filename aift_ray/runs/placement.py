"""Which device or stage holds which block, settled before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from aift_ray.config import RunConfig
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.errors import ConfigError, Problem
from aift_ray.models.cost import weighed, working_bytes
from aift_ray.models.load import skeleton
from aift_ray.models.split import pieces_of
from aift_ray.planning.partition import dealt_out, laid_out

_GB = 1e9


def decide(
    config: RunConfig, location: str, plan: BatchPlan, tokens: int, width: int, gpu: bool
) -> dict[str, int] | None:
    """{piece of the model: device or stage}; None where the strategy lays out nothing.

    Args:
        tokens: of the longest micro-batch.
        width: bytes of a weight that is not trained.
        gpu: whether workers compute on GPUs.

    Raises:
        ModelError: a model that can't be split.
        ConfigError: devices that are not there or too small, more stages than blocks; where memory
            is short, by how much, and what fits.
    """
    if config.parallel.strategy == "pipeline":
        return _stages(config, location, plan, tokens, width)
    if config.parallel.strategy != "model_parallel":
        return None
    _settle_devices(config, gpu)
    limits = config.parallel.limits
    if not limits:
        return None
    layout, missing, fitting = _over_devices(config, location, tokens, width)
    if missing:
        what = (
            f"the devices take {sum(limits.values()) / _GB:.3g} GB, and what does not fit needs "
            f"{missing / _GB:.3g} GB more (computed); {fitting} blocks fit"
        )
        remedy = next(_what_fits(config, location, tokens, width), "use more or larger devices")
        raise ConfigError([Problem("parallel.max_memory_per_gpu", what, remedy)])
    return layout


def _settle_devices(config: RunConfig, gpu: bool) -> None:
    """Refuse devices that are not there; where none are named, take all of this machine's."""
    parallel, remote = config.parallel, "RAY_ADDRESS" in os.environ
    there = torch.cuda.device_count() if gpu else 0
    missing = [n for n in parallel.limits if n >= there and not (remote and gpu)]
    if missing:
        what = f"names GPU {', '.join(map(str, missing))}, and this machine has {there}"
        remedy = "name those that are there; without it, a machine without GPUs trains on its CPU"
        raise ConfigError([Problem("parallel.max_memory_per_gpu", what, remedy)])
    if parallel.limits or not gpu:
        return
    if remote:
        what = "is missing: the GPUs of a cluster's machines are not known from here"
        remedy = "give it, for example {0: 22GB, 1: 22GB}"
        raise ConfigError([Problem("parallel.max_memory_per_gpu", what, remedy)])
    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(there)]
    # config.yaml must say what was run
    parallel.max_memory_per_gpu = {n: f"{0.9 * size / 1e6:.0f}MB" for n, size in enumerate(sizes)}


def _over_devices(
    config: RunConfig, location: str, tokens: int, width: int
) -> tuple[dict[str, int], int, int]:
    """The device of each piece, bytes that are missing, and the number of blocks that fit."""
    model = skeleton(location)
    pieces = pieces_of(model)
    weights = weighed(model, pieces, config, width, tokens, 1.0)
    working = working_bytes(model, pieces, config, width, tokens)
    limits = {n: size - working for n, size in config.parallel.limits.items()}
    layout, left = laid_out(weights, limits, config.parallel.spill_to_cpu)
    fitting = sum(name in layout for name in pieces.blocks)
    return layout, sum(piece.bytes for piece in left), fitting


def _what_fits(config: RunConfig, location: str, tokens: int, width: int) -> Iterator[str]:
    """Changes after which the devices hold the run, the smallest first."""
    methods = ["full", "lora", "qlora"]
    changed = config.model_copy(deep=True)
    changed.training.gradient_checkpointing = True
    flags = [] if config.training.gradient_checkpointing else ["--training.gradient_checkpointing"]
    for method in methods[methods.index(config.trained_as) :]:
        changed = changed.model_copy(update={"method": method})
        asked = [f"--method {method}"] if method != config.trained_as else []
        if (flags or asked) and not _over_devices(changed, location, tokens, width)[1]:
            yield f"{' '.join([*flags, *asked])} fits"
    if not config.parallel.spill_to_cpu:
        yield "--parallel.spill_to_cpu puts the rest in the host, where it computes slowly"


def _stages(
    config: RunConfig, location: str, plan: BatchPlan, tokens: int, width: int
) -> dict[str, int]:
    """The stage of each piece, by the work of blocks and output layer."""
    model, number = skeleton(location), config.parallel.stages
    pieces = pieces_of(model)
    problems = []
    if number > len(pieces.blocks):
        what = f"{number} stages can't be made of {len(pieces.blocks)} blocks"
        remedy = f"give at most {len(pieces.blocks)} stages, or use --strategy fsdp"
        problems.append(Problem("parallel.pipeline_parallel_size", what, remedy))
    ends = [name.rpartition(".")[2] for name in (pieces.embeddings, pieces.head)]
    whole = set(ends) & set(config.lora.modules_to_save or ())
    if pieces.tied and whole and config.method != "full":
        what = f"{', '.join(whole)} is embeddings and output layer, the first and the last stage"
        remedy = "train other layers as a whole, or use --strategy fsdp"
        problems.append(Problem("lora.modules_to_save", what, remedy))
    if problems:
        raise ConfigError(problems)
    share = float(plan.targets.sum() / max(1, plan.lengths.sum()))
    weights = {p.name: p for p in weighed(model, pieces, config, width, tokens, share)}
    work = [weights[name].work for name in pieces.blocks]
    sizes = dealt_out(work, number, weights[pieces.head].work)
    numbers = [stage for stage, size in enumerate(sizes) for _ in range(size)]
    layout = {pieces.embeddings: 0, **dict(zip(pieces.blocks, numbers, strict=True))}
    return layout | {pieces.norm: number - 1, pieces.head: number - 1}
