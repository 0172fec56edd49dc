"""Every setting of `aift-ray plan`, declared once."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from aift_ray.config.section import (
    SHIPPED_MODEL,
    Positive,
    Settings,
    memory_bytes,
    memory_size,
    setting,
)
from aift_ray.errors import Problem


class PlanConfig(Settings):
    """A machine, a model, and what is to be done with it."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "gpu_memory": "gpu-memory",
        "host_memory": "host-memory",
        "sequence_length": "sequence-length",
        "batch_size": "batch-size",
        "gradient_accumulation_steps": "gradient-accumulation-steps",
        "gradient_checkpointing": "gradient-checkpointing",
        "activation_checkpointing": "activation-checkpointing",
        "activation_offloading": "activation-offloading",
        "bf16_stochastic_round": "bf16-stochastic-round",
        "lora_dropout": "lora-dropout",
        "max_completion_length": "max-completion-length",
        "num_generations": "num-generations",
        "rollout_batch_size": "rollout-batch-size",
        "as_json": "json",
    }

    model: str = setting(SHIPPED_MODEL, "catalog name, folder, or Hub id that is on this machine")
    method: Literal["full", "lora", "qlora"] = setting("lora", "what is trained")
    objective: Literal[
        "sft", "dpo", "ipo", "hinge", "robust", "orpo", "simpo", "cpo", "kto", "reward", "grpo"
    ] = setting("sft", "training objective")
    gpus: Positive = setting(1, "number of GPUs of the machine")
    gpu: (
        Literal["a5000", "a6000", "3090", "4090", "l4", "a100", "h100", "h200", "measured"] | None
    ) = setting(
        None,
        "which GPU; measured: what aift-ray doctor --bench found; default: by gpu_memory, "
        "else a5000",
    )
    gpu_memory: str | None = setting(
        None, "memory that a run may use on each GPU, such as 24GB; default: the memory of the GPU"
    )
    host_memory: str | None = setting(
        None, "memory of the machine, such as 128GB; default: not checked"
    )
    sequence_length: Annotated[int, Field(ge=8)] = setting(
        2048, "tokens of a training row, and of a request with its answer"
    )
    batch_size: Positive = setting(4, "rows or comparisons per worker and micro-batch")
    gradient_accumulation_steps: Positive = setting(
        4, "micro-batches per worker and optimizer step"
    )
    backend: Literal["auto", "fsdp2", "deepspeed"] = setting(
        "auto",
        "deepspeed: the plan of zero1, zero2 and zero3 with parallel.backend deepspeed; auto: "
        "fsdp2",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = setting(
        "adamw", "dtype and placement of the moments of AdamW"
    )
    bf16_stochastic_round: bool = setting(
        False, "method full: weights and gradients in bf16, rounded stochastically"
    )
    gradient_checkpointing: bool = setting(True, "recompute activations in the backward pass")
    activation_checkpointing: Literal["full", "selective"] = setting(
        "full",
        "what gradient_checkpointing recomputes; selective: keeps the outputs of attention and of "
        "every other matrix product",
    )
    activation_offloading: bool = setting(
        False, "the activations that gradient_checkpointing keeps are kept in host memory"
    )
    r: Positive = setting(16, "rank of the adapters")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.05, "dropout on the input of the adapters"
    )
    max_completion_length: Positive = setting(
        256, "objective grpo: tokens of a completion, which sequence_length contains"
    )
    num_generations: Annotated[int, Field(ge=2)] = setting(
        8, "objective grpo: completions of each prompt"
    )
    rollout_batch_size: Positive = setting(
        64, "objective grpo: completions that a worker generates together"
    )
    beta: float = setting(
        0.0,
        "objective grpo: weight of the KL divergence from the reference, which takes a forward "
        "pass and, with method full, a second model",
        ge=0,
        le=100,
    )
    tokens: Positive = setting(10_000_000, "number of training tokens, for the estimate of hours")
    as_json: bool = setting(False, "print JSON, for scripts")

    def contradictions(self) -> list[Problem]:
        """Settings that do nothing with the objective, and completions longer than rows."""
        found = []
        found += self._beside_recomputation()
        rounded = "bf16_stochastic_round"
        if self.bf16_stochastic_round and self.method != "full":
            found.append(Problem(rounded, f"is for method full, not {self.method}", "leave it out"))
        if self.backend == "deepspeed":
            if self.bf16_stochastic_round:
                what = "is not done with backend deepspeed"
                found.append(Problem(rounded, what, "leave it out, or use --backend fsdp2"))
            if self.objective == "grpo":
                what = "grpo is not done with backend deepspeed"
                found.append(Problem("objective", what, "use --backend fsdp2"))
            if self.optimizer != "adamw":
                what = f"{self.optimizer} is not done with backend deepspeed"
                found.append(Problem("optimizer", what, "use adamw, or --backend fsdp2"))
        if self.objective == "grpo":
            return found + self._of_generation()
        for name in ("max_completion_length", "num_generations", "rollout_batch_size", "beta"):
            if name in self.model_fields_set:
                found.append(Problem(name, "acts with --objective grpo only", "leave it out"))
        return found

    def _of_generation(self) -> list[Problem]:
        """What training refuses of objective grpo."""
        found, generations = [], self.num_generations
        if "lora_dropout" in self.model_fields_set and self.lora_dropout:
            what = "the model that generates has no dropout"
            found.append(Problem("lora_dropout", what, "leave it out"))
        longest = self.sequence_length - 2
        if self.max_completion_length > longest:
            what = f"{self.max_completion_length} leaves no room for a prompt in the "
            what += f"{self.sequence_length} tokens of sequence_length"
            remedy = f"give --max-completion-length {longest} or less"
            found.append(Problem("max_completion_length", what, remedy))
        if self.rollout_batch_size < generations:
            what = f"{self.rollout_batch_size} holds less than the {generations} completions of "
            what += "one prompt"
            remedy = f"give --rollout-batch-size {generations} or more"
            found.append(Problem("rollout_batch_size", what, remedy))
        completions = self.batch_size * self.gradient_accumulation_steps * self.gpus
        if completions % generations:
            what = f"{generations} does not divide the {completions} completions of a step "
            what += "(batch_size x gradient_accumulation_steps x gpus)"
            each = generations // math.gcd(self.batch_size * self.gpus, generations)
            steps = -(-self.gradient_accumulation_steps // each) * each
            remedy = f"give --gradient-accumulation-steps {steps}, for example"
            found.append(Problem("num_generations", what, remedy))
        return found

    def _beside_recomputation(self) -> list[Problem]:
        """Where less is recomputed, or activations are kept in host memory, and can't be."""
        selective, found = self.activation_checkpointing == "selective", []
        settings = {"checkpointing": selective, "offloading": self.activation_offloading}
        for name in (f"activation_{kind}" for kind, asked in settings.items() if asked):
            if not self.gradient_checkpointing:
                what = "acts on what gradient_checkpointing recomputes, and that is off"
                found.append(Problem(name, what, "leave one of them out"))
            if self.backend == "deepspeed":
                what = "is not possible with backend deepspeed"
                found.append(Problem(name, what, "leave it out, or use --backend fsdp2"))
        return found

    @field_validator("gpu_memory", "host_memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        if value is not None and not memory_bytes(memory_size(value)):
            raise ValueError("give more than 0, for example 24GB")
        return value
