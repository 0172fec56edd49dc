"""The settings of a run as they are carried out: what is left open is settled in one step.

`by_model` and `by_rows` settle a draft, of which `by_rows` gives the resolved configuration. It
can't be changed any more: plan, dry run, config.yaml and workers read the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig, deepspeed_config
from aift_ray.data.batch_plan import BatchPlan
from aift_ray.data.cache_location import cache_folder
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.prompts.supervision import Supervision
from aift_ray.data.prompts.template_file import read_template
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine import trackers
from aift_ray.engine.grpo.rollout_plan import RolloutPlan
from aift_ray.engine.run_state import RunState
from aift_ray.errors import ConfigError, Problem
from aift_ray.models import hub, scaled_rope
from aift_ray.models.added_tokens import AddedTokens
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.models.families.refusals import check_layers
from aift_ray.models.hub import tokenizer_bytes
from aift_ray.models.model_stats import Measured, measured
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.planning.candidates import Need
from aift_ray.planning.memory_estimate import Memory
from aift_ray.planning.run_workload import answers_of
from aift_ray.runs import (
    family_checks,
    filled_batches,
    memory_fit,
    new_tokens,
    objective_inputs,
    resume_check,
)
from aift_ray.runs.row_layout import StepLayout
from aift_ray.tasks import in_training
from aift_ray.tasks.task_files import LoadedTask
from aift_ray.utils import deepspeed_check
from aift_ray.utils.compilers import compiler

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ResolvedModel:
    """The model of a run, and what its settings are judged by.

    Attributes:
        location: folder or Hub id.
        config: transformers' configuration of it.
        support: how its family is computed.
        beside: `pad_id` and `added` of a Job.
        adapter_weights: weights of the adapter that the run starts from; None: of none.
        state: where the resumed run is; None: a new run.
        changed: settings that differ from the checkpoint's, a line each.
    """

    tasks: Sequence[LoadedTask]
    location: str
    config: Any
    support: Support
    encoder: PromptEncoder
    beside: dict[str, Any]
    adapter_weights: int | None
    state: RunState | None
    changed: list[str]
    measured: Measured


@dataclass(frozen=True)
class Resolved:
    """A resolved configuration, and what led to it.

    Attributes:
        memory: computed need of a worker.
        why: lines that say why the strategy was chosen; none where the user chose.
        laid: the steps.
        layout: {piece of the model: device or stage that holds it}; None: the strategy has none.
    """

    config: RunConfig
    laid: StepLayout
    memory: Memory
    why: list[str]
    layout: dict[str, int] | None


def by_model(draft: RunConfig, workers: int, gpu: bool, resume: Path | None) -> ResolvedModel:
    """Settle what follows from model, machine and checkpoint.

    Args:
        draft: is changed.
        workers: the largest number of workers.
        gpu: whether the workers have one each.

    Raises:
        ModelError, ConfigError: what is wrong.
    """
    _given(draft, workers, gpu)
    tasks = in_training.load(draft.evaluation)
    location = scaled_rope.scaled(hub.resolve(draft.model), draft.rope_scaling)
    model_config = hub.load_config(location, draft.objective == "reward")
    _spread(draft, model_config, workers, gpu)
    support = _support(draft, model_config)
    family_checks.check_divided(draft, model_config, support)
    family_checks.check_fused(draft, location, model_config)
    encoder, added = _encoder(draft, location, model_config)
    beside = objective_inputs.settled(draft, model_config, encoder.tokenizer)
    beside["added"] = added
    draft.data.sequence_length = family_checks.sequence_length(draft, model_config)
    adapter_weights = _adopted(draft, location)
    state, changed = resume_check.resumed(draft, resume, workers) if resume else (None, [])
    model = _measured(draft, location, state, added)
    found = (tasks, location, model_config, support, encoder, beside)
    return ResolvedModel(*found, adapter_weights, state, changed, model)


def by_rows(
    draft: RunConfig,
    model: ResolvedModel,
    laid: StepLayout,
    rows: TokenRows,
    workers: int,
    gpu: bool,
) -> Resolved:
    """Settle what follows from the longest rows: strategy, filled micro-batches, copies of
    checkpoints, CPUs, devices.

    Args:
        draft: is changed.
        rows: that are trained.

    Raises:
        ModelError, ConfigError: the run does not fit into the memory that is there.
    """
    answers = answers_of(draft, workers, *laid.answered, model.support.batched)
    shape, whole = model.measured.shape, model.measured.whole

    def need(laid: StepLayout) -> Need:
        saves_beside = laid.steps > draft.training.save_steps
        sizes = tokenizer_bytes(model.location), laid.most_targets
        host = memory_fit.Host(*sizes, saves_beside)
        return memory_fit.needs(draft, shape, laid.longest, workers, gpu, whole, host, answers)

    why = memory_fit.settle(draft, need(laid), workers, gpu)
    laid, filled = filled_batches.fill(
        draft,
        laid,
        rows,
        workers // draft.parallel.workers_per_replica,
        model.support.pads(draft.data.packing),
        lambda wider: memory_fit.holds_more(draft, need(wider), workers, gpu),
    )
    memory_fit.settle_cpus(draft, workers)
    layout = _layout(draft, model.location, laid.plan, laid.longest, gpu)
    memory = memory_fit.own(draft, need(laid))
    return Resolved(draft.frozen(), laid, memory, why + filled, layout)


def _given(config: RunConfig, workers: int, gpu: bool) -> None:
    if not config.data.train_files and not config.data.mixture:
        remedy = "name some with --train-file"
        raise ConfigError([Problem("data.train_files", "no training file is given", remedy)])
    lora = config.lora
    if config.objective == "grpo" and "lora_dropout" not in lora.model_fields_set:
        # the model that generates has none
        lora.lora_dropout = 0.0
    problems = trackers.missing(list(config.training.report_to))
    problems += deepspeed_config.problems(config, workers) + deepspeed_check.check(config, gpu)
    if problems:
        raise ConfigError(problems)
    deepspeed_config.fill(config)


def _spread(config: RunConfig, model_config: PreTrainedConfig, workers: int, gpu: bool) -> None:
    """Settle how the model is spread over the workers; a ConfigError where it can't be."""
    parallel, (least, most) = config.parallel, config.worker_range(workers)
    if parallel.strategy == "tensor" and parallel.tensor_parallel_size == 1:
        parallel.tensor_parallel_size = workers
    if parallel.strategy == "pipeline" and parallel.pipeline_parallel_size == 1:
        parallel.pipeline_parallel_size = workers
    # a group that torchrun has made is of one size
    problems = parallel.misfits(least if most == workers else workers, workers)
    if parallel.offload and not gpu:
        what = "moves what a GPU can't hold to host memory, and the workers compute on CPUs"
        problems.append(Problem("parallel.offload", what, "leave it off, or use GPUs"))
    if config.training.activation_offloading and not gpu:
        what = "moves what a GPU can't hold to host memory, and the workers compute on CPUs"
        problems.append(Problem("training.activation_offloading", what, "leave it out"))
    if config.training.optimizer.startswith("paged") and not gpu:
        what = f"{config.training.optimizer} pages a GPU's memory, and the workers compute on CPUs"
        problems.append(Problem("training.optimizer", what, "use adamw or adamw_8bit, or GPUs"))
    if config.training.bf16_stochastic_round and config.training.precision == "auto" and not gpu:
        what = "keeps weights in bf16, and precision auto on a CPU is fp32"
        remedy = "give --training.precision bf16, or leave it out"
        problems.append(Problem("training.bf16_stochastic_round", what, remedy))
    if config.training.compile and not compiler(gpu):
        what = f"torch.compile needs a {'C' if gpu else 'C++'} compiler, and there is none"
        problems.append(Problem("training.compile", what, "install gcc and g++, or leave it off"))
    if config.training.kernels == "liger" and not (gpu and compiler(gpu)):
        what = "liger needs GPUs" + (", and gcc for Triton, which is not there" if gpu else "")
        problems.append(Problem("training.kernels", what, "leave it out"))
    if config.generates_beside and config.grpo.engine == "vllm" and config.base_bits and not gpu:
        what = "vllm has 4 bits on GPUs only, and the workers compute on CPUs"
        problems.append(Problem("grpo.engine", what, "use --grpo.engine transformers, or GPUs"))
    if parallel.strategy == "tensor" and not problems:
        from aift_ray.parallel.tensor_parallel import unfit

        targets = config.lora.target_modules if config.method != "full" else None
        numbers = model_config.get_text_config(decoder=True).to_dict()
        quantized = config.base_bits is not None
        problems = unfit(numbers, parallel.tensor_parallel_size, targets or [], quantized)
    if problems:
        raise ConfigError(problems)


def _support(config: RunConfig, model_config: PreTrainedConfig) -> Support:
    """How the model's family is computed; a ModelError where it can't be."""
    check_layers(model_config)
    known = family_support.known(model_config)
    if isinstance(known, Support):
        return known
    # computes a tiny model
    from aift_ray.engine.family_check import supported

    method: Any = config.trained_as
    return supported(model_config, method, cache_folder(config.data))


def _encoder(
    config: RunConfig, location: str, model_config: PreTrainedConfig
) -> tuple[PromptEncoder, AddedTokens | None]:
    """The prompts of a model, with the template and the new tokens asked for.

    Raises:
        ModelError: ids beyond its embeddings.
        ConfigError: tokens that can't be added.
    """
    tokenizer = hub.load_tokenizer(location)
    if config.data.chat_template:
        tokenizer.chat_template = read_template(config.data.chat_template)
    check_vocabulary(config.model, tokenizer, model_config)
    added = new_tokens.settled(config, tokenizer, model_config)
    encoder = PromptEncoder(
        tokenizer,
        config.data.system_prompt,
        extra_stop_ids=hub.stop_ids(location),
        supervision=Supervision.of(config.data),
    )
    return encoder, added


def _adopted(config: RunConfig, location: str) -> int | None:
    """Weights of the adapter that the run starts from, whose settings it takes; None: of none."""
    if config.lora.init_from is None:
        return None
    # needs the modelling code
    from aift_ray.models.lora.init_from import adopt

    return adopt(config, location)


def _measured(
    config: RunConfig, location: str, state: RunState | None, added: AddedTokens | None
) -> Measured:
    """The model's numbers; a ConfigError where its experts are not those of the checkpoint."""
    model = measured(location, config, added)
    if state:
        resume_check.check_experts(config, state, model.shape.expert_parameters)
    return model


def _layout(
    config: RunConfig, location: str, plan: BatchPlan | RolloutPlan, tokens: int, gpu: bool
) -> dict[str, int] | None:
    if config.parallel.strategy not in ("pipeline", "model_parallel"):
        return None
    assert isinstance(plan, BatchPlan)
    # needs the modelling code
    from aift_ray.runs.placement import decide

    return decide(config, location, plan, tokens, memory_fit.width(config, gpu), gpu)
