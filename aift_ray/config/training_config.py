"""How the weights of a run are moved: optimizer, schedule, batch, precision, evaluation, saving."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from aift_ray.config.lr_schedules import Scheduler, Share
from aift_ray.config.parallel_config import ParallelConfig
from aift_ray.config.section import Fraction, NotNegative, Positive, Section, setting

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrainingConfig(Section):
    """How the weights are moved: optimizer, schedule, batch, precision, evaluation, saving."""

    learning_rate: float = setting(
        2e-5, "peak learning rate; if not given, adapters use 2e-4", gt=0, le=10
    )
    batch_size: Positive = setting(4, "examples per worker and micro-batch (fill: packed rows)")
    gradient_accumulation_steps: Positive = setting(4, "micro-batches per worker and step")
    num_epochs: Positive = setting(3, "passes over the training rows")
    warmup_steps: NotNegative = setting(
        100,
        "steps in which the learning rate rises from 0; if not given, at most a tenth of all steps",
    )
    max_grad_norm: float = setting(1.0, "norm to which gradients are clipped; 0: no clipping", ge=0)
    eval_steps: Positive = setting(100, "steps between evaluations (with evaluation data)")
    save_steps: Positive = setting(500, "steps between checkpoints")
    logging_steps: Positive = setting(10, "steps between lines of metrics.jsonl")
    output_dir: str = setting("./outputs", "parent folder of runs without --output-dir")
    fp16: bool = setting(True, "mixed precision: bf16 or fp16 on a GPU, always fp32 on a CPU")
    gradient_checkpointing: bool = setting(
        True, "recompute activations in the backward pass: less memory, about 20% slower"
    )
    ddp: bool = setting(False, "train with world_size workers (same as --num-workers)")
    local_rank: int = setting(-1, "rank of this process in a torchrun group; -1: it is in none")
    world_size: Positive = setting(1, "number of workers, with ddp or local_rank")
    max_steps: Positive | None = setting(None, "total steps; overrides num_epochs")
    max_hours: Annotated[float, Field(gt=0)] | None = setting(
        None, "hours after which the run stops with a checkpoint and exit status 75"
    )
    seed: NotNegative = setting(42, "seed of the data order, dropout and new weights")
    lr_scheduler: Scheduler = setting(
        "cosine",
        "learning-rate schedule after the warm-up, with transformers' names (constant is "
        "constant_with_warmup, wsd is warmup_stable_decay); WarmupLR and WarmupDecayLR: "
        "DeepSpeed's, with its logarithmic warm-up",
    )
    warmup_ratio: Share | None = setting(
        None, "warm-up as a share of all steps, rounded up; overrides warmup_steps"
    )
    min_lr_ratio: Fraction = setting(
        0.0, "lowest learning rate over the peak, for linear, cosine, cosine_with_min_lr and wsd"
    )
    decay_ratio: Share | None = setting(
        None, "wsd: share of the steps, at the end, in which the rate decays; default: 0.1"
    )
    weight_decay: float = setting(0.01, "weight decay; norms and biases are excluded", ge=0, le=1)
    adam_beta1: Fraction = setting(0.9, "AdamW's decay rate of the first moment")
    adam_beta2: Fraction = setting(0.999, "AdamW's decay rate of the second moment")
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", gt=0, le=1)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "dtype of the computation; auto follows fp16; fp16 needs a GPU"
    )
    early_stopping_patience: NotNegative = setting(
        0, "stop after this many evaluations without a better loss; 0: never"
    )
    load_best: bool = setting(False, "the final model is the one with the best evaluation loss")
    keep_checkpoints: Positive = setting(3, "number of newest checkpoints to keep, and the best")
    async_save: bool = setting(
        True, "write checkpoints in the background; needs host memory for a copy"
    )
    exact_match_rows: NotNegative = setting(
        0, "held-out rows to answer (greedily) and compare, before and after training; 0: none"
    )
    exact_match_during: bool = setting(
        False, "answer and compare held-out rows at every evaluation as well"
    )
    exact_match_batch_size: Positive = setting(32, "held-out rows per generation batch")
    exact_match_max_tokens: Positive = setting(128, "maximum number of tokens of an answer")
    skip_nonfinite: NotNegative = setting(
        0, "batches with a non-finite loss or gradient to skip before the run stops"
    )
    trial_batch: bool = setting(
        True, "on GPUs, try the longest possible batch before the first step"
    )
    neftune_noise_alpha: float = setting(
        0.0, "NEFTune: noise on the embeddings in training; 5 to 15 is usual; 0: none", ge=0
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = setting(
        "adamw",
        "moments in fp32 or in 8 bits; paged: in host memory when the GPU is full; "
        "strategy tensor, parallel.offload and backend deepspeed take adamw alone",
    )
    bf16_stochastic_round: bool = setting(
        False,
        "method full: keep weights and gradients in bf16, half the memory; updates are computed in "
        "fp32 and rounded stochastically. ddp, fsdp, zero1 to zero3, with precision bf16",
    )
    activation_checkpointing: Literal["full", "selective"] = setting(
        "full",
        "what gradient_checkpointing recomputes; selective: keeps the outputs of attention and of "
        "every other matrix product. ddp, fsdp, zero1 to zero3",
    )
    activation_offloading: bool = setting(
        False,
        "on GPUs, keep the activations that gradient_checkpointing recomputes from in host memory; "
        "ddp, fsdp, zero1 to zero3",
    )
    report_to: list[Tracker] = Field(
        default_factory=lambda: list[Tracker](["tensorboard"]),
        description="where to log metrics besides metrics.jsonl: tensorboard, wandb, mlflow, "
        "trackio; none: nowhere else",
    )
    compile: bool = setting(
        False, "compile each decoder block with torch.compile: faster steps, slower first step"
    )
    kernels: Literal["torch", "liger"] = setting(
        "torch",
        "norms, feed-forward layers and rotary embeddings in training; liger: fused Triton kernels "
        "on GPUs; needs the extra aift-ray[liger]",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _report_to_none(cls, value: object) -> Any:
        given = [value] if isinstance(value, str) else value
        return [] if given in (None, ["none"]) else given


class MultiGPUTrainingConfig(TrainingConfig, ParallelConfig):
    """`TrainingConfig` with the strategy; `ParallelConfig`'s fields come first."""
