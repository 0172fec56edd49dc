"""Every setting, declared once; a file a verb."""

from aift_ray.config.data_config import DataConfig
from aift_ray.config.doctor_config import DoctorConfig
from aift_ray.config.evaluate_config import EvaluateConfig
from aift_ray.config.export_config import ExportConfig
from aift_ray.config.grpo_config import GRPOConfig
from aift_ray.config.lora_config import LoRAConfig
from aift_ray.config.merge_config import MergeConfig
from aift_ray.config.mixture_config import MixedSet
from aift_ray.config.parallel_config import ParallelConfig
from aift_ray.config.plan_config import PlanConfig
from aift_ray.config.preference_config import PreferenceConfig
from aift_ray.config.quantize_config import QuantizeConfig
from aift_ray.config.ray_config import RayConfig
from aift_ray.config.run_config import RunConfig
from aift_ray.config.section import SHIPPED_MODEL, Section, Settings, setting
from aift_ray.config.serve_config import ServeConfig, ServingConfig, VllmConfig
from aift_ray.config.tasks_config import EvaluationConfig
from aift_ray.config.tokens_config import TokensConfig
from aift_ray.config.training_config import MultiGPUTrainingConfig, TrainingConfig
from aift_ray.config.tune_config import SweepConfig, TuneConfig

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
    "TokensConfig",
    "TrainingConfig",
    "TuneConfig",
    "VllmConfig",
    "setting",
]
