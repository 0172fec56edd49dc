"""The model of a job as its method trains it: loaded, quantized, with adapters."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from aift_ray.config import RunConfig
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.models import load
from aift_ray.models.added_tokens import begin
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.bnb.shards_4bit import Loading
from aift_ray.models.families import family_support
from aift_ray.models.families.sequence_classifier import RewardHead
from aift_ray.models.lora.attach import add_adapters, continue_adapters
from aift_ray.models.lora.init_from import start_from
from aift_ray.models.recomputation import recompute_activations
from aift_ray.models.split import outlined
from aift_ray.parallel import pipeline_parallel
from aift_ray.parallel.group import Group


def built_model(
    job: Job, group: Group, precision: Precision, resume: str | None
) -> torch.nn.Module:
    """The model of a job with what is trained of it, from checkpoint folder `resume` if given."""
    config, full, layout = job.config, job.config.method == "full", job.layout or {}
    weights = resume if full else None
    held = Quantization(config.base_bits, precision.compute) if config.base_bits else None
    only = pipeline_parallel.held(layout, group) if config.parallel.strategy == "pipeline" else None
    # where each worker keeps a share, only that is read and brought to the precision of the run
    as_read = full and config.parallel.shards_weights and precision.trained is torch.float32
    dtype = None if as_read else precision.frozen
    attention, shards = job.support.attention, _shards(config, group)
    base = load.load_model(
        job.location,
        dtype,
        attention,
        held,
        only=only,
        shards=shards,
        weights=weights,
        scored=RewardHead(config.training.seed, job.pad_id)
        if config.objective == "reward"
        else None,
    )
    family_support.without_noise(base)
    if job.added and not weights:
        begin(base, job.added)
    # the same new weights on every worker, and after every restart
    torch.manual_seed(config.training.seed)
    if config.training.gradient_checkpointing and base.supports_gradient_checkpointing:
        recompute_activations(base, config.training.activation_checkpointing == "selective")
    if full:
        return base
    adapted: torch.nn.Module
    with outlined(base, load.skeleton(job.location)) if only else nullcontext():
        if resume:
            adapted = continue_adapters(base, config.lora, job.location, resume, job.added)
        elif config.lora.init_from:
            adapted = start_from(base, config.lora, config.lora.init_from)
        else:
            adapted = add_adapters(base, config.lora, job.location, job.added)
    return adapted


def untrained(job: Job, group: Group, precision: Precision) -> torch.nn.Module:
    """The model of a job as it begins, all of it on this worker, whose weights are not trained."""
    model = built_model(job, group, precision, None).requires_grad_(False)
    # what is trained in fp32 is loaded as the folder has it where workers share it out
    return model.to(precision.trained) if job.config.method == "full" else model


def _shards(config: RunConfig, group: Group) -> Loading | None:
    """How 4-bit weights are loaded that no device holds whole; None: by the device that does."""
    parallel, lora = config.parallel, config.lora
    if config.base_bits != 4 or not (
        parallel.shards_weights or parallel.strategy == "model_parallel"
    ):
        return None
    # these look at the whole base for where the adapters start
    look = lora.use_dora or lora.init_lora_weights != "default"
    if parallel.is_sharded_data_parallel and group.world_size > 1 and not look:
        return Loading(group.device, group.rank, group.world_size)
    return Loading(group.device)
