"""Every setting, declared once; a file a verb."""

from aift_ray.config.section import SHIPPED_MODEL, Section, Settings, setting
from aift_ray.config.serving import ServeConfig, ServingConfig
from aift_ray.config.training import (
    DataConfig,
    LoRAConfig,
    ParallelConfig,
    RayConfig,
    RunConfig,
    TrainingConfig,
)

__all__ = [
    "DataConfig",
    "LoRAConfig",
    "ParallelConfig",
    "RayConfig",
    "RunConfig",
    "SHIPPED_MODEL",
    "Section",
    "ServeConfig",
    "ServingConfig",
    "Settings",
    "TrainingConfig",
    "setting",
]
