"""Every setting, declared once; a file a verb."""

from aift_ray.config.parallel import ParallelConfig
from aift_ray.config.section import SHIPPED_MODEL, Section, Settings, setting
from aift_ray.config.training import (
    DataConfig,
    LoRAConfig,
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
    "Settings",
    "TrainingConfig",
    "setting",
]
