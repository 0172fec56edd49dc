"""Fine-tune Japanese language models on a Ray cluster and serve the result.

The public names load on first use: `import aift_ray` imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AdvancedMultiGPUTrainer": "aift_ray.training.multi_gpu_training",
    "AiftError": "aift_ray.errors",
    "BaseModel": "aift_ray.models.base_model",
    "Callback": "aift_ray.training.callbacks",
    "ConfigError": "aift_ray.errors",
    "DataConfig": "aift_ray.config",
    "DataError": "aift_ray.errors",
    "FullFinetuningTrainer": "aift_ray.training.full_finetuning",
    "GRPOConfig": "aift_ray.config",
    "GRPOTrainer": "aift_ray.training.reinforcement",
    "JapaneseModel": "aift_ray.models.japanese_model",
    "LoRAConfig": "aift_ray.config",
    "LoRAFinetuningTrainer": "aift_ray.training.lora_finetuning",
    "ModelError": "aift_ray.errors",
    "MultiGPUTrainingConfig": "aift_ray.config",
    "PreferenceConfig": "aift_ray.config",
    "PreferenceTrainer": "aift_ray.training.preference",
    "QuantizationOptimizer": "aift_ray.training.quantization",
    "RayConfig": "aift_ray.config",
    "RunConfig": "aift_ray.config",
    "TextDataset": "aift_ray.data.text_dataset",
    "TrainingConfig": "aift_ray.config",
    "TrainingError": "aift_ray.errors",
    "clear_gpu_memory": "aift_ray.utils.gpu_utils",
    "get_available_device": "aift_ray.utils.gpu_utils",
    "get_gpu_memory_info": "aift_ray.utils.gpu_utils",
    "optimize_model_for_gpu": "aift_ray.utils.gpu_utils",
    "set_memory_fraction": "aift_ray.utils.gpu_utils",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aift_ray' has no attribute {name!r}")
    from aift_ray.utils.process_state import environment_kept

    # libraries set variables and filters, and draw random numbers, when they are imported
    with environment_kept(), warnings.catch_warnings():
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
