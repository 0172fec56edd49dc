"""The command that trains as a row of `aift-ray plan` has it."""

from __future__ import annotations

from aift_ray.config.plan_config import PlanConfig
from aift_ray.config.preference_config import answers_a_comparison

# the same settings of `train`, by the names that they have here
_FLAGS = {
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.activation_checkpointing",
    "activation_offloading": "training.activation_offloading",
    "batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "optimizer": "training.optimizer",
    "bf16_stochastic_round": "training.bf16_stochastic_round",
    "sequence_length": "data.sequence_length",
    "r": "lora.r",
    "lora_dropout": "lora.lora_dropout",
    "max_completion_length": "grpo.max_completion_length",
    "num_generations": "grpo.num_generations",
    "rollout_batch_size": "grpo.rollout_batch_size",
    "beta": "grpo.beta",
}


def tokens_of(config: PlanConfig) -> int:
    """Tokens of a worker's micro-step; a pair has two answers, each with its prompt."""
    rows = config.batch_size * answers_a_comparison(config.objective)
    return rows * config.sequence_length


def command(config: PlanConfig, strategy: str, room: int) -> str:
    """What to type for `strategy`, with `room` bytes of each card."""
    name, _, how = strategy.partition(", ")
    words = ["aift-ray train", f"--model {config.model}", f"--method {config.method}"]
    words += [f"--objective {config.objective}"] if config.objective != "sft" else []
    words.append(f"--strategy {name}")
    if name == "model_parallel":
        each = f"{room / 1e9:.1f}GB"
        sizes = ",".join(f"{number}={each}" for number in range(config.gpus))
        words.append(f"--parallel.max_memory_per_gpu {sizes}")
    else:
        words.append(f"--num-workers {config.gpus}")
    words += ["--parallel.backend deepspeed"] if config.backend == "deepspeed" else []
    words += ["--parallel.offload true"] if how == "offload" else []
    words += [f"--parallel.context_parallel_size {config.gpus}"] if how == "context" else []
    if config.gpu_memory and name != "model_parallel":
        words.append(f"--parallel.gpu_memory {config.gpu_memory}")
    # without it the objective is dpo, and refused
    words += ["--preference.label_smoothing 0.1"] if config.objective == "robust" else []
    words += ["--reward REWARD"] if config.objective == "grpo" else []
    adapters = config.method != "full"
    for setting, flag in _FLAGS.items():
        if flag.startswith("lora.") and not adapters:
            continue
        if config.objective == "grpo" and flag == "lora.lora_dropout":
            continue
        value = getattr(config, setting)
        always = setting in ("batch_size", "gradient_accumulation_steps", "sequence_length")
        if always or value != type(config).model_fields[setting].default:
            words.append(f"--{flag} {str(value).lower() if isinstance(value, bool) else value}")
    # shorter rows fill a micro-step up; a pipeline has equal parts, and completions of a prompt are
    # trained together
    if name != "pipeline" and config.objective != "grpo":
        words.append(f"--data.tokens_per_micro_batch {tokens_of(config)}")
    return " ".join([*words, "--train-file rows.jsonl"])
