"""Everything that is settled before a worker starts: model, rows, steps, memory."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aift_ray.config import RunConfig
from aift_ray.config.preference_config import answers_of
from aift_ray.data import token_cache
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.cache_index import note_user
from aift_ray.data.cache_location import cache_folder
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.prompts.supervision import Supervision
from aift_ray.data.prompts.template_file import read_template
from aift_ray.data.tokenize import Encode, encode_in_threads
from aift_ray.engine import trackers
from aift_ray.engine.checkpoint import State
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.job import Job
from aift_ray.errors import ConfigError, Problem
from aift_ray.models import hub
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.models.families.refusals import check_layers, is_llama_like, refusal
from aift_ray.models.hub import tokenizer_bytes
from aift_ray.models.model_stats import Measured, measured
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.planning.candidates import Need
from aift_ray.planning.flops import Flops
from aift_ray.planning.memory_estimate import Memory
from aift_ray.runs import cache_admin, memory_fit, objective_inputs, resume_check, run_warnings
from aift_ray.runs.row_layout import StepLayout, global_batch, laid_out
from aift_ray.tasks import in_training
from aift_ray.utils.compilers import compiler


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
    """Resolve the model, tokenize the data, and lay out the steps.

    Args:
        workers: the largest number of workers; fixes the global batch of a new run.
        gpu: whether the workers have one each.
        started: when the run was asked for, as time.time() counts; None: now.
        encode: tokenizes the rows, where no cache holds them.

    Raises:
        ModelError, DataError, ConfigError: what is wrong, before anything has started.
    """
    _given(config)
    tasks = in_training.load(config.evaluation)
    location = hub.resolve(config.model)
    model_config = hub.load_config(location, config.objective == "reward")
    support = _settled(config, model_config, workers, gpu)
    encoder = _encoder(config, location, model_config)
    beside = objective_inputs.settled(config, model_config, encoder.tokenizer)
    # config.yaml must say what was run
    length = config.data.sequence_length = _sequence_length(config, model_config)
    started_from = _adopted(config, location)
    state, changed = resume_check.resumed(config, resume, workers) if resume else (None, [])
    model = _measured(config, location, state)
    held = answers_of(config.objective)
    room = objective_inputs.prompt_room(config, model_config, workers) or length
    prepared = token_cache.prepare(config.data, encoder, room, encode, held)
    if config.objective == "grpo":
        objective_inputs.check_rewards(config, prepared.rows("train"))
    notes = resume_check.check_rows(config, state, prepared.folder.name) if state else []
    notes += _noted(config, prepared, output)
    batch = state.global_batch if state else global_batch(config, workers)
    laid = laid_out(config, prepared, batch, support)
    need, why = _fitted(config, location, model, laid, workers, gpu)
    sizes = memory_fit.sizes(config, model, started_from)
    job = Job(
        config=config,
        location=location,
        output=output,
        cache=prepared.folder.absolute(),
        stop_ids=encoder.stop_ids,
        chat_template=encoder.tokenizer.chat_template,
        global_batch=batch,
        started=time.time() if started is None else started,
        support=support,
        memory=memory_fit.own(config, need),
        resume=resume,
        changed=changed,
        why=why,
        layout=_layout(config, location, laid.plan, laid.longest, gpu),
        **beside,
        flops=Flops.of(model.shape, sizes[1], config.method == "full"),
        tasks=tasks,
    )
    counts = (laid.plan, laid.steps, laid.rate, laid.held_out)
    result = Preparation(job, prepared, encoder, *counts, job.memory, *sizes)
    notes += _of_resumed(config, state, result) if state else []
    notes += [*model.notes, *family_support.not_applied(model_config)]
    result.warnings = [*notes, *run_warnings.of_run(result, workers, gpu)]
    return result


def _fitted(
    config: RunConfig, location: str, model: Measured, laid: StepLayout, workers: int, gpu: bool
) -> tuple[Need, list[str]]:
    """What each way of spreading the model needs, and why the one that is settled was chosen."""
    host = memory_fit.Host(tokenizer_bytes(location), laid.most_targets)
    need = memory_fit.needs(config, model.shape, laid.longest, workers, gpu, model.whole, host)
    why = memory_fit.settle(config, need, workers, gpu)
    memory_fit.settle_cpus(config, workers)
    return need, why


def _encoder(config: RunConfig, location: str, model_config: object) -> PromptEncoder:
    """The prompts of a model, with the template asked for.

    Raises:
        ModelError: ids beyond its embeddings.
    """
    tokenizer = hub.load_tokenizer(location)
    if config.data.chat_template:
        tokenizer.chat_template = read_template(config.data.chat_template)
    check_vocabulary(config.model, tokenizer, model_config)
    return PromptEncoder(
        tokenizer,
        config.data.system_prompt,
        extra_stop_ids=hub.stop_ids(location),
        supervision=Supervision.of(config.data),
    )


def _of_resumed(config: RunConfig, state: State, run: Preparation) -> list[str]:
    """What to tell of a run that goes on: what has changed since."""
    curve = resume_check.schedule(config, state, run.plan.steps_per_epoch, run.steps)
    return run.job.changed + curve


def _measured(config: RunConfig, location: str, state: State | None) -> Measured:
    """The model's numbers; a ConfigError where its experts are not those of the checkpoint."""
    model = measured(location, config)
    if state:
        resume_check.check_experts(config, state, model.shape.expert_parameters)
    return model


def _given(config: RunConfig) -> None:
    if not config.data.train_files and not config.data.mixture:
        remedy = "name some with --train-file"
        raise ConfigError([Problem("data.train_files", "no training file is given", remedy)])
    lora = config.lora
    if config.objective == "grpo" and "lora_dropout" not in lora.model_fields_set:
        # the model that generates has none
        lora.lora_dropout = 0.0
    problems = trackers.missing(list(config.training.report_to))
    if problems:
        raise ConfigError(problems)


def _settled(config: RunConfig, model_config: object, workers: int, gpu: bool) -> Support:
    """How the model is computed, once it is settled how it is spread; see `_spread`."""
    _spread(config, model_config, workers, gpu)
    return _support(config, model_config)


def _support(config: RunConfig, model_config: Any) -> Support:
    """How the model's family is computed; a ModelError where it can't be."""
    check_layers(model_config)
    known = family_support.known(model_config)
    if isinstance(known, Support):
        return known
    # computes a tiny model
    from aift_ray.engine.family_check import supported

    method: Any = config.trained_as
    return supported(model_config, method, cache_folder(config.data))


def _noted(config: RunConfig, prepared: token_cache.Prepared, output: Path) -> list[str]:
    """Keep in mind who uses the cache; what was removed for the limit of all of them."""
    with suppress(OSError):
        # one that others have made may not be ours to write into
        note_user(prepared.folder, output)
        return cache_admin.keep_limit(config.data, prepared.folder)
    return []


def _spread(config: RunConfig, model_config: Any, workers: int, gpu: bool) -> None:
    """Settle how the model is spread over the workers; a ConfigError where it can't be."""
    parallel, (least, most) = config.parallel, config.worker_range(workers)
    # config.yaml must say what was run
    if config.objective == "grpo" and parallel.strategy == "auto":
        parallel.strategy = "ddp"
    if parallel.strategy == "tensor" and parallel.tensor_parallel_size == 1:
        parallel.tensor_parallel_size = workers
    if parallel.strategy == "pipeline" and parallel.pipeline_parallel_size == 1:
        parallel.pipeline_parallel_size = workers
    # a group that torchrun has made is of one size
    problems = parallel.misfits(least if most == workers else workers, workers)
    if parallel.offload and not gpu:
        what = "moves what a GPU can't hold to host memory, and the workers compute on CPUs"
        problems.append(Problem("parallel.offload", what, "leave it off, or use GPUs"))
    if config.training.optimizer.startswith("paged") and not gpu:
        what = f"{config.training.optimizer} pages a GPU's memory, and the workers compute on CPUs"
        problems.append(Problem("training.optimizer", what, "use adamw or adamw_8bit, or GPUs"))
    if config.training.compile and not compiler(gpu):
        what = f"torch.compile needs a {'C' if gpu else 'C++'} compiler, and there is none"
        problems.append(Problem("training.compile", what, "install gcc and g++, or leave it off"))
    if parallel.strategy == "tensor" and not problems:
        from aift_ray.parallel.tensor_parallel import unfit

        targets = config.lora.target_modules if config.method != "full" else None
        numbers = model_config.get_text_config(decoder=True).to_dict()
        quantized = config.base_bits is not None
        problems = unfit(numbers, parallel.tensor_parallel_size, targets or [], quantized)
    if problems:
        raise ConfigError(problems)


def _layout(
    config: RunConfig, location: str, plan: BatchPlan | RolloutPlan, tokens: int, gpu: bool
) -> dict[str, int] | None:
    if config.parallel.strategy not in ("pipeline", "model_parallel"):
        return None
    assert isinstance(plan, BatchPlan)
    # needs the modelling code
    from aift_ray.runs.placement import decide

    return decide(config, location, plan, tokens, memory_fit.width(config, gpu), gpu)


def _sequence_length(config: RunConfig, model_config: object) -> int:
    length, limit = config.data.sequence_length, hub.context(model_config)
    alike = hub.batched_context(model_config)
    if alike != limit and alike and length > alike:
        what = f"{length} is not allowed: texts of more than {alike} tokens change the rotary "
        what += "frequencies of all others in a batch of this model"
        kind, field = family_support.family_of(model_config), "data.sequence_length"
        layout = f"give --{field} {alike} or less"
        raise ConfigError([refusal(kind, what, layout, is_llama_like, field)])
    if limit is None or length <= limit:
        return length
    if "sequence_length" not in config.data.model_fields_set:
        return limit
    what = f"{length} is not allowed: the model takes at most {limit} tokens"
    raise ConfigError([Problem("data.sequence_length", what)])


def _adopted(config: RunConfig, location: str) -> int | None:
    """Weights of the adapter that the run starts from, whose settings it takes; None: of none."""
    if config.lora.init_from is None:
        return None
    # needs the modelling code
    from aift_ray.models.lora.init_from import adopt

    return adopt(config, location)
