"""Every setting, declared once; a file a verb."""

from aift_ray.config.data import DataConfig
from aift_ray.config.doctor import DoctorConfig
from aift_ray.config.evaluate import EvaluateConfig
from aift_ray.config.export import ExportConfig
from aift_ray.config.grpo import GRPOConfig
from aift_ray.config.lora import LoRAConfig
from aift_ray.config.merge import MergeConfig
from aift_ray.config.mixture import MixedSet
from aift_ray.config.parallel import ParallelConfig
from aift_ray.config.plan import PlanConfig
from aift_ray.config.preference import PreferenceConfig
from aift_ray.config.quantize import QuantizeConfig
from aift_ray.config.ray import RayConfig
from aift_ray.config.section import SHIPPED_MODEL, Section, Settings, setting
from aift_ray.config.serving import ServeConfig, ServingConfig, VllmConfig
from aift_ray.config.tasks import EvaluationConfig
from aift_ray.config.training import (
    MultiGPUTrainingConfig,
    RunConfig,
    TrainingConfig,
)
from aift_ray.config.tune import SweepConfig, TuneConfig

__all__ = [
    "DataConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GRPOConfig",
    "LoRAConfig",
    "MergeConfig",
    "MixedSet",
    "MultiGPUTrainingConfig",
    "ParallelConfig",
    "PlanConfig",
    "PreferenceConfig",
    "QuantizeConfig",
    "RayConfig",
    "RunConfig",
    "SHIPPED_MODEL",
    "Section",
    "ServeConfig",
    "ServingConfig",
    "Settings",
    "SweepConfig",
    "TrainingConfig",
    "TuneConfig",
    "VllmConfig",
    "setting",
]
