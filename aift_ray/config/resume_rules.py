"""What a setting that differs from the checkpoint's means for a run that is gone on with."""

from __future__ import annotations

import difflib
import json
from enum import Enum
from typing import Any

from pydantic import BaseModel

from aift_ray.config.section import leaves
from aift_ray.errors import Problem


class Change(Enum):
    """What a change of a setting does to the steps to come.

    NOTHING: they are the same. TOLD: it is allowed, and told. REFUSED: they are not those of the
    run that was stopped; allowed where it is asked for by name. FIXED: the checkpoint itself holds
    the setting, so that no other can be had. JUDGED: not the words count but what they stand for:
    weights, rows, the method with its bits.
    """

    NOTHING = "nothing"
    TOLD = "told"
    REFUSED = "refused"
    FIXED = "fixed"
    JUDGED = "judged"


_NAMES = {
    Change.NOTHING: "output_dir overwrite resume resume_allow "
    "training.logging_steps training.output_dir training.save_steps training.keep_checkpoints "
    "training.async_save training.max_hours training.gradient_checkpointing "
    "training.activation_checkpointing training.activation_offloading "
    "training.local_rank training.report_to training.trial_batch training.exact_match_batch_size "
    "evaluation.batch_size grpo.reward_timeout grpo.reward_memory grpo.reward_processes "
    "grpo.placement grpo.rollout_workers "
    "parallel.gpu_memory parallel.max_memory_per_gpu data.prepare data.cache_dir "
    "data.cache_limit ray.cpus_per_worker ray.resources_per_worker ray.storage_path "
    "ray.resize_seconds ray.max_failures",
    Change.TOLD: "training.batch_size training.gradient_accumulation_steps training.num_epochs "
    "data.tokens_per_micro_batch "
    "training.max_steps training.eval_steps training.fp16 training.precision training.compile "
    "training.kernels "
    "training.early_stopping_patience training.load_best training.exact_match_rows "
    "training.exact_match_during training.exact_match_max_tokens training.skip_nonfinite "
    "training.optimizer training.bf16_stochastic_round "
    "training.ddp training.world_size parallel.strategy "
    "evaluation.tasks evaluation.steps evaluation.data_dir evaluation.limit "
    "evaluation.num_few_shot evaluation.chat grpo.num_generations_eval grpo.engine "
    "parallel.pipeline_parallel_size parallel.tensor_parallel_size "
    "parallel.context_parallel_size parallel.offload "
    "parallel.spill_to_cpu parallel.pipeline_schedule parallel.pipeline_microbatches "
    "parallel.backend parallel.deepspeed_config "
    "ray.num_workers ray.use_gpu",
    Change.REFUSED: "training.learning_rate training.warmup_steps training.max_grad_norm "
    "training.seed training.lr_scheduler training.warmup_ratio training.min_lr_ratio "
    "training.decay_ratio training.weight_decay training.adam_beta1 "
    "training.adam_beta2 training.adam_epsilon training.neftune_noise_alpha data.train_files "
    "data.validation_fraction data.packing data.sequence_length data.on_bad_row data.on_long_row "
    "data.text_unit data.encoding data.columns data.sheet data.hidden_rows "
    "data.system_prompt data.chat_template "
    "data.mixture data.near_duplicates data.near_duplicate_threshold data.contamination_files "
    "data.train_turns data.train_thoughts data.train_end data.on_rewritten_turn "
    "lora.lora_plus_ratio preference.beta preference.label_smoothing preference.length_normalized "
    "preference.rpo_alpha preference.cpo_alpha preference.simpo_gamma preference.desirable_weight "
    "preference.undesirable_weight preference.center_rewards_coefficient preference.reference "
    "grpo.reward grpo.reward_weights grpo.reward_on_failure grpo.environment grpo.max_turns "
    "grpo.asynchronous grpo.estimator "
    "grpo.num_generations grpo.max_completion_length "
    "grpo.rollout_batch_size grpo.steps_per_generation grpo.num_iterations grpo.temperature "
    "grpo.top_p grpo.top_k grpo.min_p grpo.loss_type grpo.scale_rewards grpo.beta "
    "grpo.use_bias_correction_kl grpo.epsilon "
    "grpo.epsilon_high grpo.delta grpo.mask_truncated_completions grpo.soft_punish_cache "
    "grpo.dynamic_sampling_rounds grpo.importance_sampling_correction "
    "grpo.importance_sampling_mode grpo.importance_sampling_clip_max",
    Change.FIXED: "lora.r lora.lora_alpha lora.target_modules lora.experts lora.lora_dropout "
    "lora.bias lora.task_type lora.use_rslora lora.use_dora lora.modules_to_save "
    "lora.init_lora_weights lora.init_from tokens.add tokens.train objective rope_scaling",
    Change.JUDGED: "model method lora.use_qlora lora.qlora_4bit data.eval_files",
}
# every setting of a training run
CHANGES = {name: change for change, names in _NAMES.items() for name in names.split()}


def flat(section: BaseModel) -> dict[str, Any]:
    """Every setting by its dotted name, as JSON has it."""
    # a section within a list is a value too
    text = json.dumps(dict(leaves(section)), default=lambda held: held.model_dump(mode="json"))
    found: dict[str, Any] = json.loads(text)
    return found


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that a checkpoint keeps; a storage path, which may hold a key, is not among them."""
    return {n: value for n, value in settings.items() if CHANGES[n] is not Change.NOTHING}


def refused_allowances(names: list[str], resumes: bool) -> list[Problem]:
    """What is wrong with the names of settings that may differ."""
    if names and not resumes:
        return [Problem("resume_allow", "acts with resume only", "leave it out")]
    can = [name for name, change in CHANGES.items() if change is Change.REFUSED]
    remedy = f"those that can: {', '.join(can)}"
    found = []
    for name in names:
        change = CHANGES.get(name)
        if change in (Change.TOLD, Change.NOTHING):
            problem = Problem("resume_allow", f"{name} may differ anyway", "leave it out")
            found.append(problem)
        elif change is not Change.REFUSED:
            what = "can't be allowed to differ" if change else "is not a setting"
            near = difflib.get_close_matches(name, can, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near and not change else remedy
            found.append(Problem("resume_allow", f"{name} {what}", hint))
    return found
