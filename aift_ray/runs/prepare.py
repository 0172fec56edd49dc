"""Everything that is known before a worker starts: model, rows, steps, memory."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aift_ray.config import RunConfig
from aift_ray.config.preference_config import answers_of
from aift_ray.data import token_cache
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.cache_index import note_user
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.tokenize import Encode, encode_in_threads
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.job import Job
from aift_ray.engine.run_state import RunState
from aift_ray.errors import DataError, UserError
from aift_ray.models import vocab_check
from aift_ray.models.families import family_support
from aift_ray.planning.flops import Flops
from aift_ray.planning.memory_estimate import Memory
from aift_ray.runs import (
    cache_admin,
    memory_fit,
    objective_inputs,
    resolve,
    resume_check,
    run_warnings,
)
from aift_ray.runs.resolve import ResolvedModel
from aift_ray.runs.row_layout import global_batch, laid_out


@dataclass
class Preparation:
    """A run that could start.

    Attributes:
        job: what the workers are told.
        prepared: the token cache with its counts.
        plan: which rows make which step.
        steps: of the whole run.
        rate: the learning rate and its schedule, in words.
        held_out: rows to evaluate on.
        memory: computed need of a worker; None for an architecture of another kind.
        checkpoint_bytes: computed size of a checkpoint.
        warnings: what the user should know and can act on.
    """

    job: Job
    prepared: token_cache.Prepared
    encoder: PromptEncoder
    plan: BatchPlan | RolloutPlan
    steps: int
    rate: str
    held_out: int
    memory: Memory | None
    parameters: int
    trained_parameters: int
    checkpoint_bytes: int
    warnings: list[str] = field(default_factory=list)


def prepare(
    config: RunConfig,
    output: Path,
    workers: int,
    gpu: bool,
    resume: Path | None,
    started: float | None = None,
    encode: Encode = encode_in_threads,
) -> Preparation:
    """Resolve the configuration and the model, tokenize the data, and lay out the steps.

    Args:
        config: stays as it is; the resolved one is that of the job.
        workers: the largest number of workers; fixes the global batch of a new run.
        gpu: whether the workers have one each.
        started: when the run was asked for, as time.time() counts; None: now.
        encode: tokenizes the rows, where no cache holds them.

    Raises:
        ModelError, DataError, ConfigError: what is wrong, before anything has started.
    """
    draft = config.model_copy(deep=True)
    model = resolve.by_model(draft, workers, gpu, resume)
    state, encoder = model.state, model.encoder
    prepared, reference = _rows_and_reference(draft, model, workers, encode)
    notes = resume_check.check_rows(draft, state, prepared.folder.name) if state else []
    notes += _noted(draft, prepared, output)
    batch = state.global_batch if state else global_batch(draft, workers)
    laid = laid_out(draft, prepared, batch, model.support)
    resolved = resolve.by_rows(draft, model, laid, prepared.rows("train"), workers, gpu)
    laid = resolved.laid
    sizes = memory_fit.sizes(resolved.config, model.measured, model.adapter_weights)
    job = Job(
        config=resolved.config,
        location=model.location,
        output=output,
        cache=prepared.folder.absolute(),
        stop_ids=encoder.stop_ids,
        chat_template=encoder.tokenizer.chat_template,
        global_batch=batch,
        started=time.time() if started is None else started,
        support=model.support,
        memory=resolved.memory,
        answered=laid.answered,
        resume=resume,
        changed=model.changed,
        why=resolved.why,
        layout=resolved.layout,
        reference=reference,
        **model.beside,
        flops=Flops.of(model.measured.shape, sizes[1], resolved.config.method == "full"),
        tasks=model.tasks,
    )
    counts = (laid.plan, laid.steps, laid.rate, laid.held_out)
    result = Preparation(job, prepared, encoder, *counts, job.memory, *sizes)
    notes += _of_resumed(job.config, state, result) if state else []
    notes += [*model.measured.notes, *family_support.not_applied(model.config)]
    result.warnings = [*notes, *run_warnings.of_run(result, workers, gpu)]
    return result


def _rows_and_reference(
    config: RunConfig, model: ResolvedModel, workers: int, encode: Encode
) -> tuple[token_cache.Prepared, str | None]:
    """The tokenized rows, and where the reference model lies; what is wrong of both at once."""
    reference, refused = None, None
    try:
        reference = objective_inputs.reference(config, model.encoder.tokenizer)
    except UserError as error:
        refused = error
    try:
        room = objective_inputs.prompt_room(config, model.config, workers)
        length, answers = room or config.data.sequence_length, answers_of(config.objective)
        prepared = token_cache.prepare(config.data, model.encoder, length, encode, answers)
        _check_rows(config, model, prepared)
    except UserError as error:
        raise DataError([*refused.problems, *error.problems]) if refused else error from None
    if refused:
        raise refused
    return prepared, reference


def _check_rows(config: RunConfig, model: ResolvedModel, prepared: token_cache.Prepared) -> None:
    """Refuse tokens without an embedding, and try what judges completions on the rows."""
    tokenizer = model.encoder.tokenizer
    beyond = vocab_check.tokens_beyond(tokenizer, model.config)
    if beyond:
        # a template may make a token of what only some rows have
        used = {n for kind in ("train", "eval") for n in prepared.rows(kind).ids_from(min(beyond))}
        written = {number: token for number, token in beyond.items() if number in used}
        vocab_check.refuse_beyond(config.model, model.config, written, "rows hold")
    if config.objective == "grpo":
        objective_inputs.check_rewards(config, prepared.rows("train"))


def _of_resumed(config: RunConfig, state: RunState, run: Preparation) -> list[str]:
    """What to tell of a run that goes on: what has changed since."""
    curve = resume_check.schedule(config, state, run.plan.steps_per_epoch, run.steps)
    return run.job.changed + curve


def _noted(config: RunConfig, prepared: token_cache.Prepared, output: Path) -> list[str]:
    """Keep in mind who uses the cache; what was removed for the limit of all of them."""
    with suppress(OSError):
        # one that others have made may not be ours to write into
        note_user(prepared.folder, output)
        return cache_admin.keep_limit(config.data, prepared.folder)
    return []
