"""Everything one worker needs for the loop, built in one place and one order."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from aift_ray.config.resume_rules import flat, kept
from aift_ray.data import token_cache
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine import checkpoint, optimizer, phases, reference_logprobs
from aift_ray.engine.grpo.rollout_engine import RolloutPool
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.grpo.rollout_setup import evaluator_of, maker_of, policy_of, rollouts_of
from aift_ray.engine.job import Job
from aift_ray.engine.job_model import built_model
from aift_ray.engine.loss import LossModule
from aift_ray.engine.objectives import Objective
from aift_ray.engine.precision import Precision
from aift_ray.engine.reference_logprobs import References
from aift_ray.engine.run_state import RunState
from aift_ray.engine.step_plan import plan_batches, split, total_steps
from aift_ray.engine.task_scores import TaskEvaluator
from aift_ray.engine.validate import Validator
from aift_ray.engine.worker_run import Run
from aift_ray.models import hub, load
from aift_ray.models.compiled_blocks import compile_blocks
from aift_ray.models.split import whole_like
from aift_ray.parallel import hold, wrap
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel, ParallelModel
from aift_ray.utils.malloc_trim import make_room


def build(
    job: Job,
    group: Group,
    resume: Path | None = None,
    tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
    pool: Callable[[], RolloutPool | None] | None = None,
) -> Run:
    """Load data, tokenizer, model and optimizer, from checkpoint folder `resume` if given.

    Args:
        tokenizer: gives the tokenizer of the job; None: it is loaded.
        pool: starts processes that generate completions, where the workers do not.
    """
    config = job.config
    parallel = config.parallel
    sizes = parallel.model_parallel_size, parallel.context_parallel_size
    group = Group(group.rank, group.world_size, group.device, *sizes)
    precision = Precision.resolve(config, group.device)
    state, tensors = _state(job, resume)
    prepared = token_cache.load(job.cache)
    rows, held_out, set_of = prepared.rows("train"), prepared.rows("eval"), prepared.set_of()
    indices, own = split(config, prepared.groups(), len(held_out))
    laid = (state.global_batch, prepared.sequence_length, job.support.packed, set_of)
    plan = plan_batches(config, rows, indices, *laid)
    texts = _tokenizer(job, group, tokenizer)
    make_room()
    tested = (held_out, np.arange(len(held_out))) if len(held_out) else (rows, own)
    steps, objective = total_steps(config, plan), Objective.of(config)
    compared = None
    if objective and isinstance(plan, BatchPlan):
        left = range(state.step, steps)
        compared = References(objective, job, group, precision, plan, left, rows, tested)
        _ask_reference(job, group, precision, compared)
    model = built_model(job, group, precision, str(resume) if resume else None)
    parallel_model = _trainable(job, group, precision, model, tensors)
    if compared and compared.missing:
        phases.tell(job.output, group, phases.REFERENCE)
        compared.complete(parallel_model.module)
    run = Run(
        job=job,
        group=group,
        precision=precision,
        parallel_model=parallel_model,
        rows=rows,
        plan=plan,
        evaluator=_evaluator(job, group, precision, texts, compared, *tested),
        tasks=_tasks(job, group, precision, texts),
        state=state,
        total_steps=steps,
        resumed_from=state.step if resume else None,
        outline=_outline(job, group, model),
        # of one set it is the loss itself
        set_of=set_of if len(prepared.sets) > 1 else None,
        set_names=[each.name for each in prepared.sets],
        set_losses=torch.zeros(len(prepared.sets), dtype=torch.float64, device=group.device),
        comparison=compared.train if compared else None,
    )
    if isinstance(plan, RolloutPlan):
        _add_rollouts(run, plan, tested, texts, tensors, pool)
    return run


def _tokenizer(
    job: Job, group: Group, given: Callable[[], PreTrainedTokenizerBase] | None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer, where this worker reads texts; its files are written for saved models."""
    if not (group.is_main_process or job.config.reads_texts):
        return None
    tokenizer = (given or job.load_tokenizer)()
    if group.is_main_process:
        job.tokenizer_files.write(tokenizer)
    return tokenizer if job.config.reads_texts else None


def _trainable(
    job: Job,
    group: Group,
    precision: Precision,
    model: torch.nn.Module,
    tensors: dict[str, Any] | None,
) -> ParallelModel:
    """`model` with its loss, spread over the workers, with the optimizer of a checkpoint."""
    config, training = job.config, job.config.training
    noise, policy = training.neftune_noise_alpha, policy_of(config)
    module = LossModule(model, noise, Objective.of(config), policy).train()
    if training.kernels == "liger":
        # imports the modelling code of two families
        from aift_ray.models.fused_kernels import fuse

        fuse(model)
    how = (group, precision.compute, job.layout)
    parallel_model = wrap(config.parallel, module, *how, kept=precision.trained)
    if training.compile:
        compile_blocks(model)
    adamw = optimizer.build(module, training, config.lora.lora_plus_ratio)
    parallel_model.set_optimizer(adamw, precision.scaler(group))
    if tensors:
        parallel_model.load_optimizer_state(tensors["optimizer"])
        parallel_model.scaler.load_state_dict(tensors["scaler"])
    return parallel_model


def _add_rollouts(
    run: Run,
    plan: RolloutPlan,
    tested: tuple[TokenRows, np.ndarray],
    tokenizer: PreTrainedTokenizerBase | None,
    tensors: dict[str, Any] | None,
    pool: Callable[[], RolloutPool | None] | None,
) -> None:
    """What generates completions for training and evaluation."""
    job, group, precision = run.job, run.group, run.precision
    assert tokenizer is not None
    maker = maker_of(job, group, precision, tokenizer, pool)

    def reference() -> LossModel:
        module = LossModule(built_model(job, group, precision, None), policy=policy_of(job.config))
        how = (group, precision.compute, precision.trained)
        return hold(job.config.parallel, module.eval(), *how)

    run.rollouts = rollouts_of(
        job, maker, plan, run.rows, tensors or {}, reference, run.total_steps
    )
    progress = partial(plan.progress, total_steps=run.total_steps)
    run.evaluator = evaluator_of(job, maker, progress, run.state.step, *tested)


def _state(job: Job, resume: Path | None) -> tuple[RunState, dict[str, Any] | None]:
    """Where the run is, of this job from now on; and the checkpoint's tensors beside the model."""
    config = job.config
    state, tensors = checkpoint.load(resume) if resume else (RunState(), None)
    state.global_batch = state.global_batch or job.global_batch
    state.data, state.trained_as = job.cache.name, config.trained_with
    state.settings = kept(flat(config))
    state.changes = list(dict.fromkeys([*state.changes, *_changes(job)]))
    return state, tensors


def _ask_reference(job: Job, group: Group, precision: Precision, compared: References) -> None:
    """Load a reference that is another model, have it judge the rows, and give it back."""
    if reference_logprobs.within(job.config) or not compared.missing:
        return
    phases.tell(job.output, group, phases.REFERENCE)
    config = reference_logprobs.as_reference(job.config)
    asked = replace(job, config=config, location=job.reference or job.location)
    module = LossModule(built_model(asked, group, precision, None))
    how = (group, precision.compute, job.layout, False, precision.trained)
    reference = wrap(config.parallel, module, *how)
    compared.complete(reference.module)
    del module, reference
    gc.collect()
    if group.device.type == "cuda":
        torch.cuda.empty_cache()


def _evaluator(
    job: Job,
    group: Group,
    precision: Precision,
    tokenizer: PreTrainedTokenizerBase | None,
    compared: References | None,
    rows: TokenRows,
    numbers: np.ndarray,
) -> Validator | None:
    """What evaluates on the rows of these numbers; None where there are none."""
    if not len(numbers) or job.config.objective == "grpo":
        return None
    config, training = job.config, job.config.training
    return Validator(
        rows,
        numbers,
        config.micro_batch,
        (
            training.exact_match_rows,
            training.exact_match_batch_size,
            training.exact_match_max_tokens,
        ),
        tokenizer,
        job.stop_ids,
        precision,
        group,
        job.padded,
        job.support.batched,
        compared.tested if compared else None,
    )


def _tasks(
    job: Job, group: Group, precision: Precision, tokenizer: PreTrainedTokenizerBase | None
) -> TaskEvaluator | None:
    if not job.tasks or tokenizer is None:
        return None
    context = hub.context(hub.load_config(job.location))
    return TaskEvaluator(job, tokenizer, context, precision, group)


def _changes(job: Job) -> list[str]:
    """The settings that differ from the checkpoint's, with the step from which they do."""
    step = checkpoint.step_of(job.resume.name) if job.resume else None
    return [] if step is None else [f"from step {step + 1}: {line}" for line in job.changed]


def _outline(job: Job, group: Group, model: torch.nn.Module) -> torch.nn.Module | None:
    if job.config.parallel.strategy != "pipeline" or not group.is_main_process:
        return None
    return whole_like(model, load.skeleton(job.location))


def rebuild(run: Run, folder: Path) -> None:
    """Put the model of a checkpoint in place of the run's; it is not trained further."""
    model = built_model(run.job, run.group, run.precision, str(folder))
    policy = policy_of(run.config)
    module = LossModule(model, objective=Objective.of(run.config), policy=policy)
    how = (run.precision.compute, run.job.layout, False, run.precision.trained)
    run.parallel_model = wrap(run.config.parallel, module, run.group, *how)
