"""DeepSpeed configurations as transformers' documentation publishes them, by their names there."""

from __future__ import annotations

from typing import Any

_AUTO_ADAMW = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
}
_WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
_FP16 = {
    "enabled": "auto",
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
_BATCHES = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
_ZERO2 = {
    "stage": 2,
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": "auto",
    "contiguous_gradients": True,
}
_ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
_CPU = {"device": "cpu", "pin_memory": True}
_NVME = {"device": "nvme", "nvme_path": "NVME", "pin_memory": True}
WARMUP_LR = {"type": "WarmupLR", "params": _WARMUP}
WARMUP_DECAY_LR = {
    "type": "WarmupDecayLR",
    "params": {"last_batch_iteration": -1, "total_num_steps": "auto", **_WARMUP},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "zero1": {"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}, **_BATCHES},
    "zero2": {
        "fp16": _FP16,
        "bf16": {"enabled": "auto"},
        "optimizer": _AUTO_ADAMW,
        "scheduler": WARMUP_LR,
        "zero_optimization": _ZERO2,
        "zero_allow_untested_optimizer": True,
        **_BATCHES,
    },
    "zero2 offload": {
        "fp16": _FP16,
        "optimizer": _AUTO_ADAMW,
        "scheduler": WARMUP_DECAY_LR,
        "zero_optimization": {**_ZERO2, "offload_optimizer": _CPU, "round_robin_gradients": True},
        **_BATCHES,
    },
    "zero3": {
        "fp16": _FP16,
        "optimizer": _AUTO_ADAMW,
        "scheduler": WARMUP_DECAY_LR,
        "zero_optimization": _ZERO3,
        **_BATCHES,
    },
    "zero3 offload": {
        "bf16": {"enabled": "auto"},
        "optimizer": _AUTO_ADAMW,
        "scheduler": WARMUP_LR,
        "zero_optimization": {**_ZERO3, "offload_optimizer": _CPU, "offload_param": _CPU},
        **_BATCHES,
    },
    "zero3 infinity": {
        "fp16": _FP16,
        "optimizer": _AUTO_ADAMW,
        "scheduler": WARMUP_LR,
        "zero_optimization": {
            **_ZERO3,
            "offload_optimizer": {**_NVME, "buffer_count": 4, "fast_init": False},
            "offload_param": {**_NVME, "buffer_count": 5, "buffer_size": 1e8, "max_in_cpu": 1e9},
            "aio": {
                "block_size": 262144,
                "queue_depth": 32,
                "thread_count": 1,
                "single_submit": False,
                "overlap_events": True,
            },
        },
        **_BATCHES,
    },
}
